"""Users' mistakes lead to one sentence and one hint, and leave nothing behind.

`clfew.refused` checks that form, and that not a byte in the folder has changed.
"""

import json
import struct

import pytest
import safetensors.numpy

from clfew.runs.checksum import add_checksum

pretrain = ("pretrain", "images", "--encoder", "resnet8-w8", "--epochs", "1")
finetune = ("finetune", "--labels", "1/class", "--mode", "knn")


def write_csv(path, rows, header="path,label"):
    path.write_text("\n".join([header, *rows]) + "\n")


# Functions that make folders that cannot be used for training.


def empty(folder, images):
    folder.mkdir()


def without_images(folder, images):
    folder.mkdir()
    (folder / "notes.txt").write_text("no image")


def missing(folder, images):
    pass


def too_few(folder, images):
    images(folder, classes=[""], each=15)


def all_corrupt(folder, images):
    folder.mkdir()
    for i in range(20):
        (folder / f"{i}.jpg").write_bytes(b"\xff\xd8\xff not a jpeg")


def all_truncated(folder, images):
    images(folder, classes=[""], each=20)
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes()[:200])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (empty, ["no images", "images", "empty"]),
        (without_images, ["no images", "only 1 .txt"]),
        (missing, ["images"]),
        (too_few, ["15", "16"]),
        (all_corrupt, ["None of the images"]),
        (all_truncated, ["20 of 20"]),
    ],
)
def test_a_folder_that_cannot_be_learned_from(clfew, images, tmp_path, make, words):
    make(tmp_path / "images", images)
    message = clfew.refused(*pretrain, cwd=tmp_path)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("options", "rc", "words"),
    [
        (["--batch", "64"], 1, ["--batch 64", "40", "--batch 32"]),
        (["--encoder", "resnet81"], 1, ["resnet81", "did you mean", "resnet18"]),
        (["--encoder", "resnet9-w8"], 1, ["resnet9-w8", "resnetD-wW"]),
        # Narrower than 8 channels, torch corrupts its own memory.
        (["--encoder", "resnet8-w4"], 1, ["resnet8-w4", "resnetD-wW"]),
        (["--method", "moco"], 2, ["--method moco", "simclr"]),
        (["--optimizer", "adam"], 2, ["--optimizer adam", "adamw"]),
        (["--loss", "mse"], 2, ["--loss mse", "nt-xent"]),
        (["--minutes", "1"], 2, ["--epochs", "--minutes"]),
        (["--precision", "fp61"], 2, ["fp61", "bf16"]),
        (["--device", "cuda"], 1, ["cuda", "--device cpu"]),
        (["--device", "gpu"], 1, ["gpu", "--device cpu"]),
        (["--compile", "yes"], 2, ["--compile yes", "on"]),
        (["--resume", "runs/pretrain-1"], 1, ["no folder runs/pretrain-1"]),
    ],
)
def test_settings_that_cannot_be_used(clfew, images, tmp_path, options, rc, words):
    import torch

    if options == ["--device", "cuda"] and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    images(tmp_path / "images", classes=[""], each=40)
    message = clfew.refused(*pretrain, *options, rc=rc, cwd=tmp_path)
    assert all(word in message for word in words), message


def test_files_that_are_not_images_are_ignored_and_counted(clfew, images, tmp_path):
    images(tmp_path / "images", classes=[""], each=30)
    for name in ("a.txt", "b.json", "Thumbs.db"):
        (tmp_path / "images" / name).write_text("no image")
    (tmp_path / "images/.hidden.png").write_text("no image")
    said = clfew.ok(*pretrain, cwd=tmp_path).stderr
    assert "read as    images without class folders: 30; left out: 1 .db, 1 .json, 1 .txt" in said


def test_damaged_images_are_left_out_and_listed_with_the_reason(clfew, images, tmp_path):
    images(tmp_path / "images", each=12)
    whole = (tmp_path / "images/cross/000.png").read_bytes()
    for name, content in {
        "cross/empty.png": b"",
        "ring/text.jpg": b"hello",
        "ring/cut.png": whole[:300],
    }.items():
        (tmp_path / "images" / name).write_bytes(content)
    (tmp_path / "images/ring/gone.png").symlink_to("nowhere.png")
    message = clfew.ok(*pretrain, cwd=tmp_path).stderr
    assert "4 of 40 images" in message and "bad_images.csv" in message
    rows = (tmp_path / "runs/pretrain-1/bad_images.csv").read_text().splitlines()
    names = [row.split(",")[0] for row in rows]
    assert names == ["path", "cross/empty.png", "ring/cut.png", "ring/gone.png", "ring/text.jpg"]
    assert all(row.split(",", 1)[1].strip() for row in rows)
    # The classifier is neither trained nor tested on them.
    clfew.ok("finetune", "--labels", "all", "--mode", "knn", cwd=tmp_path)
    labels = (tmp_path / "runs/finetune-1/labels.csv").read_text()
    assert not any(name in labels for name in names[1:])


@pytest.mark.parametrize(
    ("rows", "header", "words"),
    [
        (
            ["images/000.png,a", "images/001.png,b", "images/000.png,b"],
            "path,label",
            ["000.png", "two labels, 'a' and 'b'"],
        ),
        (["images/000.png,a", "images/nowhere.png,b"], "path,label", ["1 of 2", "nowhere.png"]),
        (["images/000.png,a"], "colour,label", ["colour", "path,label", "--path-column"]),
        (["images/000.png,a,b"], "file,filename,label", ["file, filename", "--path-column file"]),
        (["images/000.png,a,b"], "path,label", ["Line 2"]),
        (["images/000.png,a,tset"], "path,label,split", ["tset", "test"]),
        ([], "path,label", ["no rows"]),
        (["images/" + "0" * 300 + ".png,a"], "path,label", ["1 of 1"]),
    ],
)
def test_a_csv_that_cannot_be_a_source(clfew, images, tmp_path, rows, header, words):
    images(tmp_path / "images", classes=[""], each=20)
    write_csv(tmp_path / "list.csv", rows, header)
    message = clfew.refused("pretrain", "list.csv", cwd=tmp_path)
    assert "list.csv" in message and all(word in message for word in words), message


@pytest.mark.parametrize(
    ("rows", "header", "words"),
    [
        (["cross/000.png"], "path", ["label"]),
        (["cross/000.png,a", "images/elsewhere.png,b"], "path,label", ["elsewhere.png"]),
        (["cross/000.png,", "cross/001.png, "], "path,label", ["None of the 2 rows", "fill in"]),
        (["cross/000.png,a", "cross/001.png, "], "path,label", ["one class only, 'a'"]),
        (["cross/000.png,cross", "cross/000.png,ring"], "path,label", ["two labels"]),
    ],
)
def test_a_label_file_that_cannot_be_used(clfew, project, rows, header, words):
    write_csv(project / "labels.csv", rows, header)
    message = clfew.refused("finetune", "--labels", "labels.csv", cwd=project)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("labels", "rc", "words"),
    [
        ("0%", 2, ["0%"]),
        ("200%", 2, ["200%"]),
        ("3/klass", 2, ["3/klass"]),
        ("", 2, ["--labels"]),
        ("-5", 2, ["-5"]),
        ("1e9", 2, ["1e9"]),
        ("0", 2, ["no labels"]),
        ("nowhere.csv", 1, ["nowhere.csv"]),
        ("49", 1, ["48", "all"]),
        ("17/class", 1, ["17/class", "16"]),
        ("2", 1, ["3 classes", "--labels 3"]),
    ],
)
def test_wrong_numbers_of_labels_are_refused(clfew, project, labels, rc, words):
    message = clfew.refused("finetune", f"--labels={labels}", rc=rc, cwd=project)
    assert all(word in message for word in words), message


def test_labelled_images_that_make_no_classifier(clfew, project, images):
    images(project / "one", classes=["ring"], each=8)
    assert "one class" in clfew.refused(*finetune[:1], "one", *finetune[1:], cwd=project)
    images(project / "single", classes=["cross", "ring"], each=8)
    images(project / "single", classes=["lonely"], each=1)
    message = clfew.refused(*finetune[:1], "single", *finetune[1:], cwd=project)
    assert "'lonely'" in message and "one image" in message
    # The classes differ from those of the classifier that --from names.
    images(project / "others", classes=["cross", "square"], each=8)
    message = clfew.refused(
        *finetune[:1], "others", *finetune[1:], "--from", "runs/finetune-1", cwd=project
    )
    assert "classes differ" in message and "square" in message
    lines = [f"ring/{i:03d}.png,{'new' if i % 2 else 'ring'}" for i in range(6)]
    write_csv(project / "labels.csv", lines)
    message = clfew.refused(
        "finetune", "--labels", "labels.csv", "--from", "runs/finetune-1", cwd=project
    )
    assert "classes differ" in message
    assert "--mode best" in clfew.refused(
        "finetune", "--labels", "all", "--mode", "best", rc=2, cwd=project
    )


def test_pretraining_accepts_subfolders_of_one_image(clfew, images, tmp_path):
    # Pretraining does not use labels, so a subfolder with one photo is not an error.
    images(tmp_path / "images", classes=[f"day {i}" for i in range(20)], each=1)
    clfew.ok(*pretrain, cwd=tmp_path)


@pytest.fixture(scope="module")
def odd_artifacts(trained, tmp_path_factory):
    """A folder of files that are not intact artifacts."""
    folder = tmp_path_factory.mktemp("odd")
    whole = (trained / "runs/finetune-1/classifier.safetensors").read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + length])
    metadata = json.loads(header["__metadata__"]["clfew"])

    def with_metadata(name, **changes):
        changed = json.dumps(
            {**header, "__metadata__": {"clfew": json.dumps({**metadata, **changes})}}
        ).encode()
        content = struct.pack("<Q", len(changed)) + changed + whole[8 + length :]
        (folder / f"{name}.safetensors").write_bytes(add_checksum(content))

    (folder / "truncated.safetensors").write_bytes(whole[:-100])
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "pickle.safetensors").write_bytes(
        b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00cos\nsystem\n."
    )
    import numpy as np

    safetensors.numpy.save_file({"x": np.zeros(3, np.float32)}, folder / "other-tool.safetensors")
    with_metadata("future", format_version=99)
    with_metadata("misfit", encoder="resnet14-w8")
    with_metadata("unknown", encoder="resnet-of-tomorrow")
    with_metadata("classless", classes=["a", "a", "b"])
    no_seen = {n: v for n, v in safetensors.numpy.load(whole).items() if not n.startswith("seen.")}
    forgetful = safetensors.numpy.save(no_seen, {"clfew": header["__metadata__"]["clfew"]})
    (folder / "forgetful.safetensors").write_bytes(add_checksum(forgetful))
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "truncated",
        "empty",
        "pickle",
        "other-tool",
        "future",
        "misfit",
        "unknown",
        "classless",
        "forgetful",
    ],
)
def test_a_file_that_is_no_whole_artifact(clfew, project, odd_artifacts, name):
    file = odd_artifacts / f"{name}.safetensors"
    for command in (["eval"], ["finetune", "--labels", "1/class"], ["predict", "image.jpg"]):
        if name == "forgetful" and command[0] == "predict":
            continue  # Predicting does not need the list of images that were used in training.
        assert file.name in clfew.refused(*command, "--from", file, cwd=project)
    if name not in ("misfit", "unknown", "forgetful"):  # info does not build the network.
        assert file.name in clfew.refused("info", file, cwd=project)


def test_an_artifact_of_the_wrong_kind_or_none(clfew, project):
    for origin in ("runs/pretrain-1", "runs/pretrain-1/encoder.safetensors"):
        for command in (["predict", "image.jpg"], ["eval"]):
            message = clfew.refused(*command, "--from", origin, cwd=project)
            assert "not a classifier" in message and "clfew finetune" in message
    assert "unlabeled" in clfew.refused("info", "unlabeled", cwd=project)
    for command in (
        ["predict", "image.jpg"],
        ["eval"],
        ["finetune", "--labels", "all"],
        ["embed", "unlabeled"],
    ):
        assert "nowhere" in clfew.refused(*command, "--from", "nowhere", cwd=project)
        assert "unlabeled" in clfew.refused(*command, "--from", "unlabeled", cwd=project)
