"""Each file of the corpus is read to the right pixels or refused with its reason, in bounded memory."""

import contextlib
import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from corpus import GOOD, STORED_AS, oriented, picture, saved
from damaged import BAD
from handmade import GREY, png
from layout import GROWING, NOT_ALLOWED, SECRET, growing, lay_out, state_of
from PIL import Image

from clfew.data import decode as decoding
from clfew.data.decode import BadImage, decode, load_square, read_bytes, to_square
from clfew.data.image_files import walk_images
from clfew.errors import UserError
from clfew.models.artifacts import load_classifier, load_encoder
from clfew.models.features import apply_to_cache
from clfew.models.kept_scale import kept_scale
from clfew.runs.files import unguarded

# clfew ignores these warnings too: their causes are harmless or refused.
pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")
SIDE = 16


def by_name(files):
    return pytest.mark.parametrize("file", files, ids=[file.name for file in files])


def test_the_corpus_has_every_kind():
    assert len(GOOD) + len(BAD) >= 60
    names = [file.name for file in GOOD + BAD]
    assert len(names) == len(set(names))
    # Pillow does not know the layout of those with bands.
    known = [file for file in GOOD if not file.name.startswith("bands")]
    kinds = {Image.open(io.BytesIO(file.content)).format for file in known}
    assert kinds == {*decoding.FORMATS, "MPO"}


def test_without_its_extra_a_heif_file_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setattr(decoding, "FORMATS", tuple(f for f in decoding.FORMATS if f != "HEIF"))
    file = next(file for file in GOOD if file.name == "telephone.HEIC")
    with pytest.raises(BadImage, match=r"pip install 'clfew\[heif\]'"):
        decode(file.content)


@by_name(GOOD)
def test_a_good_file_is_read_to_its_pixels(file):
    image = decode(file.content)
    assert image.mode == "RGB" and (image.height, image.width) == file.pixels.shape[:2]
    difference = np.abs(np.asarray(image).astype(int) - file.pixels)
    assert difference.max() <= file.off
    # Commands read the same picture squeezed to a square; only JPEGs may be decoded at a smaller scale.
    squeezed, aspect = load_square(file.content, SIDE)
    assert squeezed.shape == (SIDE, SIDE, 3) and squeezed.dtype == np.uint8
    assert aspect == pytest.approx(file.pixels.shape[1] / file.pixels.shape[0])
    expected, _ = to_square(Image.fromarray(file.pixels), SIDE)
    assert np.abs(squeezed.astype(int) - expected).max() <= file.off


@by_name(BAD)
def test_a_bad_file_is_refused_with_its_reason(file):
    reasons = []
    for read in (decode, lambda content: load_square(content, SIDE)):
        with pytest.raises(BadImage, match=file.reason) as error:
            read(file.content)
        reasons.append(str(error.value))
    assert reasons[0] == reasons[1] and reasons[0].isprintable() and len(reasons[0]) < 120


@by_name(GOOD)
def test_the_start_of_a_file_is_refused_or_shows_the_whole_picture(file):
    """The picture is complete if the missing part does not belong to it; it is never half a picture."""
    for percent in (50, 95):
        content = file.content[: percent * len(file.content) // 100]
        with contextlib.suppress(BadImage):
            assert np.array_equal(np.asarray(decode(content)), np.asarray(decode(file.content)))


def test_files_and_what_is_no_file_are_distinguished(tmp_path):
    good, bad = lay_out(tmp_path / "photos")
    names, others = walk_images(tmp_path / "photos")
    assert sorted(names) == sorted(good | bad) and others.words() == "nothing in b/empty folder.png/"
    bad.pop(SECRET)  # Root may read it, except in a command with the fault NOT_ALLOWED.
    for name, reason in bad.items():
        with pytest.raises(BadImage, match=reason):
            decode(read_bytes(tmp_path / "photos" / name))


@contextlib.contextmanager
def as_nobody():
    """A context in which the process is a user without rights, because root may read everything."""
    if os.geteuid() != 0:
        yield
        return
    try:
        os.seteuid(65534)
    except OSError:
        pytest.skip("root may read any file here, and may not become another user")
    try:
        yield
    finally:
        os.seteuid(0)


def test_what_may_not_be_read_is_reported(tmp_path, monkeypatch):
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)  # Other users may not enter the folders above it.
    (tmp_path / "a").mkdir()
    (tmp_path / "a/secret.png").write_bytes(GOOD[0].content)
    (tmp_path / "a/secret.png").chmod(0)
    with as_nobody(), pytest.raises(BadImage, match="Permission denied"):
        read_bytes(Path("a/secret.png"))
    for mode in (0o300, 0o644):  # The folder may not be listed; it may be listed, but not entered.
        (tmp_path / "closed/inner").mkdir(parents=True, exist_ok=True)
        (tmp_path / "closed").chmod(mode)
        with as_nobody(), pytest.raises(UserError, match="permission denied"):
            walk_images(Path("."))
        (tmp_path / "closed").chmod(0o755)


@pytest.mark.parametrize(("more", "reason"), [(0, None), (1000, None), (10**6, "larger than")])
def test_a_file_that_grows_while_it_is_read(tmp_path, monkeypatch, more, reason):
    """Bytes added after the size was read are read too, up to the limit."""
    monkeypatch.setattr(decoding, "MAX_BYTES", 10_000)
    file = tmp_path / "growing.png"
    pixels = picture()
    file.write_bytes(saved(pixels, "PNG"))

    def open_and_grow(*arguments):
        with open(file, "ab") as end:
            end.write(b"m" * more)
        return open(*arguments)

    monkeypatch.setattr(decoding, "open", open_and_grow, raising=False)
    if reason:
        with pytest.raises(BadImage, match=reason):
            read_bytes(file)
    else:
        assert np.array_equal(np.asarray(decode(read_bytes(file))), pixels)


MEASURE = """
import os, resource, sys
from pathlib import Path
from PIL import Image
from clfew.data.decode import BadImage, decode, load_square
Image.init()  # The first image of a kind loads a plugin, whose memory must not count.
load_square(Path(sys.argv[1]).read_bytes(), 16)
for name in sys.argv[2:]:
    if (child := os.fork()) == 0:  # ru_maxrss is a process's maximum, so each file gets a process.
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            decode(Path(name).read_bytes())
        except BadImage:
            pass
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def memory_of(folder, contents):
    """Returns the peak KiB that decoding each of these takes."""
    if not sys.platform.startswith("linux"):
        pytest.skip("ru_maxrss has another unit, or includes the parent, elsewhere than on Linux")
    files = [folder / str(number) for number in range(len(contents))]
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)
    command = [sys.executable, "-c", MEASURE, files[0], *files]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [int(line) for line in done.stdout.split()]


def test_no_file_of_the_corpus_takes_much_memory(tmp_path):
    files = GOOD + BAD
    taken = memory_of(tmp_path, [file.content for file in files])
    assert {f.name: kib for f, kib in zip(files, taken, strict=True) if kib > 48 * 1024} == {}


def test_memory_is_bounded_by_the_pixels(tmp_path):
    """Decoding takes at most 20 bytes a pixel for any kind, so 2 GB for the largest allowed image."""
    side = 2000
    y, x = np.mgrid[:side, :side].astype(np.uint16)
    pixels = np.stack([x, y, x + y], -1).astype(np.uint8)
    alpha, colours = np.dstack([pixels, pixels[..., 0]]), Image.fromarray(pixels).quantize(16)
    coloured, wide = io.BytesIO(), io.BytesIO()
    colours.save(coloured, "PNG", transparency=0)
    Image.fromarray(x.astype(np.int32)).save(wide, "TIFF")
    kinds = {
        "progressive JPEG": oriented(6, "JPEG", STORED_AS[6](pixels), progressive=True),
        "CMYK JPEG": saved(pixels, "JPEG", "CMYK", progressive=True),
        "RGBA PNG": saved(alpha, "PNG", "RGBA", compress_level=1),
        "palette PNG": coloured.getvalue(),
        "32-bit TIFF": wide.getvalue(),
        "16-bit PNG": png(x[..., None], 16, GREY),
        "grey PNG": saved(pixels, "PNG", "LA"),
        "WebP": saved(alpha, "WEBP", "RGBA", quality=20, method=0),
        "LZW TIFF": saved(pixels, "TIFF", compression="tiff_lzw"),
    }
    taken = memory_of(tmp_path, list(kinds.values()))
    per_pixel = {kind: 1024 * kib / side**2 for kind, kib in zip(kinds, taken, strict=True)}
    assert {kind: taken for kind, taken in per_pixel.items() if not 1 < taken < 20} == {}, per_pixel


@pytest.fixture(scope="module")
def worked(clfew, tiny, tmp_path_factory):
    """A folder in which five commands were run on the corpus, while one of its images grew."""
    folder = tmp_path_factory.mktemp("corpus")
    good, bad = lay_out(folder / "photos")
    before, results = state_of(folder / "photos"), {}
    options = {"cwd": folder, "env": {"CLFEW_CACHE": str(folder / "cache")}, "faults": NOT_ALLOWED}
    with growing(folder / "photos" / GROWING):
        for command in (
            ["pretrain", "photos", *tiny],
            ["finetune", "--labels", "50%", "--mode", "linear"],
            ["eval"],
            ["embed", "photos", "--from", "runs/pretrain-1"],
        ):
            results[command[0]] = clfew.ok(*command, "--precision", "fp32", **options)
        predict = ("predict", "photos", "--top", 2, "--format", "jsonl", "--precision", "fp32")
        results["predict"] = clfew(*predict, **options)
    return folder, good, bad, before, results


def read_csv(file):
    with open(file, newline="", encoding="utf-8", errors="surrogateescape") as lines:
        return [{k: unguarded(v) for k, v in row.items()} for row in csv.DictReader(lines)]


@pytest.mark.parametrize("command", ["pretrain", "finetune", "eval", "embed", "predict"])
def test_a_command_finishes_and_names_each_bad_file_with_its_reason(worked, command):
    folder, _, bad, _, results = worked
    if command == "predict":
        rows = [row for row in results["predict"].rows() if "error" in row]
        reported = {os.path.relpath(row["path"], "photos"): row["error"] for row in rows}
        assert (
            results["predict"].rc == 1
            and f"error: {len(bad)} of the images" in results["predict"].stderr
        )
    else:
        rows = read_csv(folder / f"runs/{command}-1/bad_images.csv")
        reported = {row["path"]: row["reason"] for row in rows}
        assert re.search(rf"^skipped +{len(bad)} ", results[command].stderr, re.MULTILINE)
    assert len(rows) == len(reported) and sorted(reported) == sorted(bad)
    assert {name: reported[name] for name in bad if not re.search(bad[name], reported[name])} == {}
    assert "Traceback" not in results[command].stderr


def test_training_on_odd_shapes_stays_finite(worked):
    lines = (worked[0] / "runs/pretrain-1/metrics.jsonl").read_text().splitlines()
    assert lines and all(np.isfinite(json.loads(line)["loss"]) for line in lines)


def test_not_a_byte_of_an_original_is_changed(worked):
    folder, _, _, before, _ = worked
    after = state_of(folder / "photos")
    grown = os.fsencode(folder / "photos" / GROWING)
    assert after.pop(grown)[2].startswith(before[grown][2])
    assert after == {path: state for path, state in before.items() if path != grown}


def test_commands_read_a_good_file_to_identical_pixels(worked):
    """pretrain, finetune and eval read image caches, a new one each, because one image had grown. embed
    and predict read the files. From the same pixels, a network outputs the same."""
    folder, good, bad, _, results = worked
    names = sorted(good | bad)
    rows = np.array([i for i, name in enumerate(names) if name in good])
    encoder, _, metadata, _ = load_encoder(folder / "runs/pretrain-1/encoder.safetensors")
    contents = [read_bytes(folder / "photos" / names[i]) for i in rows]
    scale = kept_scale(metadata)
    squares = [load_square(content, metadata.side, scale) for content in contents]
    pixels, aspects = (np.array(values) for values in zip(*squares, strict=True))
    caches = list((folder / "cache").glob("*/pixels.safetensors"))
    assert len(caches) == 3
    for cache in caches:
        arrays = safetensors.numpy.load_file(cache)
        assert np.array_equal(arrays["pixels"][rows], pixels)
        assert np.array_equal(arrays["aspects"][rows], aspects.astype(np.float32))

    def outputs_of(network):
        everything = (pixels, aspects.astype(np.float32), np.arange(len(pixels)))
        return apply_to_cache(network, metadata.size, *everything, torch.device("cpu"))

    embedded = safetensors.numpy.load_file(folder / "runs/embed-1/features.safetensors")["features"]
    listed = [row["path"] for row in read_csv(folder / "runs/embed-1/paths.csv")]
    assert listed == [names[i] for i in rows]
    assert np.allclose(embedded, outputs_of(encoder), atol=1e-5)
    classifier, metadata, *_ = load_classifier(folder / "runs/finetune-1/classifier.safetensors")
    expected = torch.softmax(torch.from_numpy(outputs_of(classifier)), 1).numpy()
    predicted = [dict(row["top"]) for row in results["predict"].rows() if "error" not in row]
    probabilities = np.array([[top[name] for name in metadata.classes] for top in predicted])
    assert np.allclose(probabilities, expected, atol=1e-5)
