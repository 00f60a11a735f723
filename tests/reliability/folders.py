"""Folders, lists and data sets as people have them, with what each of them means.

Each case is an input that other tools' users have reported, or one of its kind. `files` lie below the
case's folder: a name alone is an image, a name with a text or bytes holds that. `images` is what is
expected: the split and the class of each image, "" for no class. `said` must be in what is printed when
the source is opened. `refused` is the pattern of the error, where the meaning is not plain.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from corpus import picture, saved
from handmade import RGB, png


@dataclass(frozen=True)
class Case:
    kind: str
    name: str
    files: dict[str, str | bytes | None]
    images: dict[str, str] = field(default_factory=dict)
    said: tuple[str, ...] = ()
    refused: str = ""
    spec: str = ""
    """What is opened, within the folder; "" for the folder itself."""


_IMAGE = png(picture(1), 8, RGB)


def lay_out_case(case: Case, folder: Path) -> str:
    """Writes the files of a case and returns the name of the source."""
    for name, content in case.files.items():
        file = folder / name
        if name.endswith("/"):
            file.mkdir(parents=True, exist_ok=True)
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str) and content.startswith("-> "):
            file.symlink_to(content[3:])
        elif content is None:
            file.write_bytes(_IMAGE)
        else:
            file.write_bytes(content.encode() if isinstance(content, str) else content)
    prefix, name = ("hf:", case.spec[3:]) if case.spec.startswith("hf:") else ("", case.spec)
    return f"{prefix}{folder / name}" if name else str(folder)


def _of(names: str) -> dict[str, str | bytes | None]:
    """Returns images by their names, between spaces."""
    return dict.fromkeys(names.split(), None)


def _folders(kind: str, name: str, images: str, *said: str, more=None) -> Case:
    """A folder. images: each image's name = its split, and its class after a colon."""
    pairs = dict(each.split("=") for each in images.split())
    return Case(kind, name, dict.fromkeys(pairs, None) | (more or {}), pairs, said)


def _list(kind: str, name: str, content: str | bytes, images: str, *said: str, file="list.csv") -> Case:
    """A list beside cat/1.png, dog/2.png and fox/3.png."""
    files = _of("cat/1.png dog/2.png fox/3.png") | {file: content}
    return Case(kind, name, files, dict(each.split("=") for each in images.split()), said, spec=file)


def _refused(kind: str, name: str, content: str | bytes, refused: str, file="list.csv") -> Case:
    files = _of("cat/1.png dog/2.png fox/3.png") | {file: content}
    return Case(kind, name, files, refused=refused, spec=file)


def _rows(*rows: tuple[str, ...], separator: str = ",") -> str:
    return "".join(separator.join(row) + "\n" for row in rows)


UNLABELLED_TEST = "a test split without labels"
WORDS = "words that are splits and also things"
SPLITS = "names of splits"
CLASSES = "class folders"
FORMATS = "formats"
NOT_THEIRS = "what is no image of the user's"
LINKS = "links"
LISTS = "label lists"

_CASES = [
    _folders(
        UNLABELLED_TEST,
        "competition",
        "train/cat/1.png=train:cat train/dog/2.png=train:dog val/cat/3.png=val:cat "
        "val/dog/4.png=val:dog test/5.png=test:",
        "splits: train 2 in train/, val 2 in val/, test 1 in test/",
        "test has no labels: val is tested on",
        "1 image without a label",
    ),
    _folders(
        UNLABELLED_TEST,
        "no-val",
        "train/cat/1.png=train:cat train/dog/2.png=train:dog test/5.png=test:",
    ),
    _folders(
        UNLABELLED_TEST,
        "test-in-images",
        "train/cat/1.png=train:cat train/dog/2.png=train:dog test/images/5.png=test:",
    ),
    _folders(
        UNLABELLED_TEST,
        "test-unknown",
        "train/cat/1.png=train:cat train/dog/2.png=train:dog test/unknown/5.png=test:",
    ),
    _folders(
        UNLABELLED_TEST,
        "names-with-images",
        "train_images/cat/1.png=train:cat train_images/dog/2.png=train:dog test_images/5.png=test:",
    ),
    _list(
        UNLABELLED_TEST,
        "empty-labels",
        "path,label,split\ncat/1.png,cat,train\ndog/2.png,dog,train\nfox/3.png,,test\n",
        "cat/1.png=train:cat dog/2.png=train:dog fox/3.png=test:",
        "1 without a label",
    ),
    _folders(
        UNLABELLED_TEST,
        "wrapped",
        "archive/train/cat/1.png=train:cat archive/train/dog/2.png=train:dog archive/test/5.png=test:",
        "in archive/",
    ),
    _folders(WORDS, "vehicles", "bus/1.png=train:bus car/2.png=train:car train/3.png=train:train"),
    _folders(
        WORDS,
        "vehicles-in-folders",
        "bus/a/1.png=train:bus car/a/2.png=train:car train/a/3.png=train:train",
    ),
    _folders(WORDS, "loose-test", "cat/1.png=train:cat dog/2.png=train:dog test/3.png=test:"),
    _folders(WORDS, "loose-val", "cat/1.png=train:cat dog/2.png=train:dog val/3.png=val:"),
    _folders(
        WORDS,
        "loose-train-and-test",
        "cat/1.png=train:cat dog/2.png=train:dog train/3.png=train: test/4.png=test:",
    ),
    _folders(WORDS, "test-tubes", "test-tube/1.png=train:test-tube flask/2.png=train:flask"),
    _folders(
        WORDS,
        "class-train-in-splits",
        "train/bus/1.png=train:bus train/train/2.png=train:train test/bus/3.png=test:bus "
        "test/train/4.png=test:train",
    ),
    _folders(WORDS, "inside-words", "pretrained/1.png=train:pretrained attest/2.png=train:attest"),
    _folders(SPLITS, "Training-Testing", "Training/cat/1.png=train:cat Testing/cat/2.png=test:cat"),
    _folders(SPLITS, "Train-Validation", "Train/cat/1.png=train:cat Validation/cat/2.png=val:cat"),
    _folders(SPLITS, "dev", "TRAIN/cat/1.png=train:cat dev/cat/2.png=val:cat"),
    _folders(SPLITS, "eval", "train/cat/1.png=train:cat eval/cat/2.png=test:cat"),
    _folders(SPLITS, "seg", "seg_train/sea/1.png=train:sea seg_test/sea/2.png=test:sea"),
    _folders(SPLITS, "coco", "train2017/1.png=train: val2017/2.png=val:"),
    _folders(
        SPLITS,
        "within-classes",
        "cat/train/1.png=train:cat cat/test/2.png=test:cat dog/train/3.png=train:dog "
        "dog/test/4.png=test:dog",
    ),
    _list(
        SPLITS,
        "column",
        "path,label,split\ncat/1.png,a,Training\ndog/2.png,b,DEV\nfox/3.png,b,Test set\n",
        "cat/1.png=train:a dog/2.png=val:b fox/3.png=test:b",
    ),
    _list(
        SPLITS,
        "column-subset",
        "path,label,subset\ncat/1.png,a,train\ndog/2.png,b,evaluation\n",
        "cat/1.png=train:a dog/2.png=test:b",
        "split from 'subset'",
    ),
    _folders(
        CLASSES,
        "camera-traps",
        "deer/site1/100MEDIA/1.png=train:deer deer/site2/2.png=train:deer fox/3.png=train:fox",
        "deer 2 in 2 subfolders, fox 1",
        "no test split: a fifth is held out",
    ),
    _folders(
        CLASSES,
        "all-deep",
        "deer/site1/1.png=train:deer fox/site1/2.png=train:fox",
    ),
    _folders(CLASSES, "unlabeled", "cat/1.png=train:cat dog/2.png=train:dog unlabeled/3.png=train:"),
    _folders(
        CLASSES,
        "labeled-unlabeled",
        "labeled/cat/1.png=train:cat labeled/dog/2.png=train:dog unlabeled/3.png=train:",
    ),
    _folders(
        CLASSES,
        "no-image-of-a-class",
        "cat/1.png=train:cat dog/2.png=train:dog",
        "2 .cr2 in fox/",
        more={"fox/1.CR2": "raw", "fox/2.CR2": "raw"},
    ),
    _folders(
        CLASSES,
        "empty-class",
        "cat/1.png=train:cat dog/2.png=train:dog",
        "nothing in fox/",
        more={"fox/": None},
    ),
    _folders(
        CLASSES,
        "empty-class-in-split",
        "train/cat/1.png=train:cat train/dog/2.png=train:dog test/cat/3.png=test:cat",
        "nothing in test/dog/",
        more={"test/dog/": None},
    ),
    _folders(
        CLASSES,
        "loose-beside",
        "1.png=train: cat/2.png=train:cat dog/3.png=train:dog",
        "1 image without a label",
    ),
    _folders(CLASSES, "albums", "2020/may/1.png=train: 2021/june/2.png=train:"),
    _folders(CLASSES, "one-wrapper", "photos/cat/1.png=train:cat photos/dog/2.png=train:dog"),
    _folders(
        CLASSES,
        "videos-beside",
        "cat/1.png=train:cat dog/2.png=train:dog",
        "1 .mp4 in dog/",
        more={"dog/film.MP4": "film"},
    ),
    Case(
        FORMATS,
        "heic",
        {"cat/1.HEIC": saved(picture(1), "HEIF", quality=90), "dog/2.png": None},
        {"cat/1.HEIC": "train:cat", "dog/2.png": "train:dog"},
    ),
    Case(
        FORMATS,
        "avif",
        {"cat/1.avif": saved(picture(1), "AVIF"), "dog/2.png": None},
        {"cat/1.avif": "train:cat", "dog/2.png": "train:dog"},
    ),
    Case(
        FORMATS,
        "jpeg-2000",
        {
            "cat/1.jp2": saved(picture(1), "JPEG2000"),
            "dog/2.J2K": saved(picture(1), "JPEG2000", no_jp2=True),
        },
        {"cat/1.jp2": "train:cat", "dog/2.J2K": "train:dog"},
    ),
    Case(
        FORMATS,
        "heif-called-jpg",
        {"cat/1.jpg": saved(picture(1), "HEIF", quality=90), "dog/2.png": None},
        {"cat/1.jpg": "train:cat", "dog/2.png": "train:dog"},
    ),
    Case(
        FORMATS,
        "heif-endings",
        {f"cat/{n}": saved(picture(1), "HEIF", quality=90) for n in ("1.heif", "2.hif")}
        | {"dog/3.HEIF": saved(picture(2), "HEIF", quality=90)},
        {"cat/1.heif": "train:cat", "cat/2.hif": "train:cat", "dog/3.HEIF": "train:dog"},
    ),
    Case(
        FORMATS,
        "many-of-one-camera",
        {
            f"cat/{n}.{end}": saved(picture(1), kind)
            for n, end, kind in (
                (1, "JPG", "JPEG"),
                (2, "jfif", "JPEG"),
                (3, "TIFF", "TIFF"),
                (4, "webp", "WEBP"),
            )
        }
        | {"dog/5.Png": None, "dog/5.CR3": "raw", "dog/5.xmp": "<x/>"},
        {
            "cat/1.JPG": "train:cat",
            "cat/2.jfif": "train:cat",
            "cat/3.TIFF": "train:cat",
            "cat/4.webp": "train:cat",
            "dog/5.Png": "train:dog",
        },
        ("1 .cr3 in dog/",),
    ),
    Case(
        FORMATS,
        "only-raw",
        {"cat/1.NEF": "raw", "dog/2.NEF": "raw"},
        refused=r"no images in .*: only 2 \.nef in cat/ and dog/\.",
    ),
    _folders(
        NOT_THEIRS,
        "own-runs",
        "1.png=train: 2.png=train:",
        "3 files that clfew made",
        more={
            "runs/pretrain-1/config.json": json.dumps({"versions": {"clfew": "0.1.0"}}),
            "runs/pretrain-1/samples.png": None,
            "runs/pretrain-1/plots/loss.png": None,
        },
    ),
    _folders(
        NOT_THEIRS,
        "own-report",
        "cat/1.png=train:cat dog/2.png=train:dog",
        "3 files that clfew made",
        more={"report/report.json": "{}", "report/report.html": "x", "report/confusion.png": None},
    ),
    _folders(
        NOT_THEIRS,
        "not-own-config",
        "cat/1.png=train:cat dog/2.png=train:dog",
        "1 .json in cat/",
        more={"cat/config.json": '{"versions": [1]}'},
    ),
    *(
        _folders(
            NOT_THEIRS,
            name.strip("$@#.[]").replace(" ", "-"),
            "cat/1.png=train:cat dog/2.png=train:dog",
            f"1 file in {name}/",
            more={f"{name}/x/9.png": None},
        )
        for name in (
            "$RECYCLE.BIN",
            "System Volume Information",
            "@eaDir",
            "#recycle",
            "lost+found",
            "__MACOSX",
            "[Originals]",
            "Photos Library.photoslibrary",
            "CVS",
            "node_modules",
        )
    ),
    _folders(
        NOT_THEIRS,
        "inside-a-class",
        "cat/1.png=train:cat dog/2.png=train:dog",
        "1 file in @eaDir/",
        more={"cat/@eaDir/SYNOPHOTO_THUMB_M.png": None},
    ),
    _folders(
        NOT_THEIRS,
        "hidden",
        "cat/1.png=train:cat dog/2.png=train:dog",
        more={".git/objects/3.png": None, "cat/._1.png": None, ".thumbnails/4.png": None},
    ),
    Case(
        LINKS,
        "annex",
        _of("store/1.png") | {"cat/1.png": "-> ../store/1.png", "list.csv": "path,label\ncat/1.png,a\n"},
        {"cat/1.png": "train:a"},
        spec="list.csv",
    ),
    Case(
        LINKS,
        "dvc",
        _of(".dvc/cache/files/md5/ab/1.png cat/0.png")
        | {"cat/1.png": "-> ../.dvc/cache/files/md5/ab/1.png", "list.csv": "path,label\ncat/1.png,a\n"},
        {"cat/1.png": "train:a"},
        spec="list.csv",
    ),
    Case(
        LINKS,
        "names-of-the-store-without-endings",
        {"blobs/c0ffee": _IMAGE, "cat/1.png": "-> ../blobs/c0ffee", "dog/2.png": None},
        {"cat/1.png": "train:cat", "dog/2.png": "train:dog"},
    ),
    Case(
        LINKS,
        "store-out-of-the-folder",
        _of("store/1.png photos/dog/2.png") | {"photos/cat/1.png": "-> ../../store/1.png"},
        {"cat/1.png": "train:cat", "dog/2.png": "train:dog"},
        spec="photos",
    ),
    Case(
        LINKS,
        "a-folder-of-links",
        _of("store/1.png store/2.png")
        | {"here": "-> photos", "photos/cat/1.png": "-> ../../store/1.png"},
        {"1.png": "train:"},
        spec="here/cat",
    ),
    Case(
        LINKS,
        "linked-folder",
        _of("cat/1.png dog/2.png") | {"fox": "-> cat"},
        {"cat/1.png": "train:cat", "dog/2.png": "train:dog"},
    ),
    *(
        _list(
            LISTS,
            f"{path}-{label}",
            _rows((path, label), ("cat/1.png", "a"), ("dog/2.png", "b")),
            "cat/1.png=train:a dog/2.png=train:b",
            f"path from '{path}', label from '{label}'",
        )
        for path, label in (
            ("filename", "class"),
            ("file_name", "species"),
            ("image", "category"),
            ("Image Path", "Class Name"),
            ("id", "breed"),
        )
    ),
    _list(
        LISTS,
        "further-columns",
        "date,path,label,note\n2020,cat/1.png,a,x\n2021,dog/2.png,b,\n",
        "cat/1.png=train:a dog/2.png=train:b",
    ),
    _list(
        LISTS,
        "semicolons",
        "path;label\ncat/1.png;a, b\ndog/2.png;b\n",
        "dog/2.png=train:b",
    ),
    _list(LISTS, "tabs", "path\tlabel\ncat/1.png\ta\ndog/2.png\tb\n", "dog/2.png=train:b"),
    _list(LISTS, "tsv", "path\tlabel\ncat/1.png\ta\ndog/2.png\tb\n", "dog/2.png=train:b", file="l.tsv"),
    _list(
        LISTS,
        "utf-16",
        "path,label\ncat/1.png,a\ndog/2.png,Bär\n".encode("utf-16"),
        "dog/2.png=train:Bär",
    ),
    _list(
        LISTS,
        "backslashes",
        "path,label\ncat\\1.png,a\ndog\\2.png,b\n",
        "cat/1.png=train:a dog/2.png=train:b",
    ),
    _list(
        LISTS,
        "no-ending",
        "id,label\ncat/1,a\ndog/2,b\n",
        "cat/1.png=train:a dog/2.png=train:b",
    ),
    _list(
        LISTS,
        "twice-the-same",
        "path,label\ncat/1.png,a\ndog/2.png,b\ncat/1.png,a\n",
        "cat/1.png=train:a dog/2.png=train:b",
    ),
    _list(
        LISTS,
        "one-hot",
        "image,MEL,NV\ncat/1.png,1.0,0.0\ndog/2.png,0.0,1.0\n",
        "cat/1.png=train:MEL dog/2.png=train:NV",
        "2 columns of 0 and 1",
    ),
    _list(
        LISTS,
        "jsonl",
        '{"file_name": "cat/1.png", "label": "a"}\n{"file_name": "dog/2.png", "label": 1}\n',
        "cat/1.png=train:a dog/2.png=train:1",
        file="list.jsonl",
    ),
    _refused(LISTS, "two-labels", "path,label\ncat/1.png,a\ncat/1.png,b\n", "two labels, 'a' and 'b'"),
    _refused(LISTS, "two-flags", "image,A,B\ncat/1.png,1,1\ndog/2.png,0,1\n", "several labels: A, B"),
    _refused(LISTS, "unclear", "path,class,species\ncat/1.png,a,b\n", "may be the label: class, spec"),
    Case(
        LISTS,
        "metadata-csv",
        _of("1.png 2.png") | {"metadata.csv": "file_name,label\n1.png,a\n2.png,b\n"},
        {"1.png": "train:a", "2.png": "train:b"},
        ("labels from metadata.csv",),
    ),
    Case(
        LISTS,
        "metadata-jsonl",
        _of("train/1.png test/2.png")
        | {
            "train/metadata.jsonl": '{"file_name": "1.png", "label": "a"}\n',
            "test/metadata.jsonl": '{"file_name": "2.png", "label": "b"}\n',
        },
        {"train/1.png": "train:a", "test/2.png": "test:b"},
    ),
    Case(
        LISTS,
        "metadata-of-something-else",
        _of("cat/1.png dog/2.png") | {"metadata.csv": "camera,lens\nx,y\n"},
        {"cat/1.png": "train:cat", "dog/2.png": "train:dog"},
        ("1 .csv",),
    ),
]


def data_sets(folder: Path) -> dict[str, tuple[str, list[str], tuple[str, ...]]]:
    """Writes data sets and returns for each its kind, the splits and classes of its rows, and what is
    said; the names are those to open."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    def table(**columns) -> pa.Table:
        return pa.table(columns)

    images = [png(picture(n), 8, RGB) for n in range(4)]
    structs = [{"bytes": image, "path": None} for image in images]
    names = ["a", "b", "a", "b"]

    def parquet(name: str, content: pa.Table) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(content, folder / name)

    labelled = ["train:a", "train:b", "train:a", "train:b"]
    parquet("pandas/data.parquet", table(image=structs, label=names))
    parquet("polars/data.parquet", table(photo=pa.array(images, pa.large_binary()), species=names))
    parquet("sets [2024]/data.parquet", table(image=structs, label=names))
    parquet("numbers/data.parquet", table(img=structs, fine_label=[0, 1, 0, 1]))
    parquet("named [a-z]*/x.parquet", table(image_bytes=pa.array(images, pa.binary()), label=names))
    paths = [{"bytes": image, "path": f"{n}.png"} for n, image in enumerate(images)]
    parquet("paths/data.parquet", table(image=paths, target=pa.array(names).dictionary_encode()))
    parquet("words/digits_train.parquet", table(image=structs[:2], label=names[:2]))
    parquet("words/digits_test.parquet", table(image=structs[2:], label=names[2:]))
    parquet("numbered/train_0.parquet", table(image=structs[:2], label=names[:2]))
    parquet("numbered/test_0.parquet", table(image=structs[2:], label=names[2:]))
    kinds = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b"]))
    rows = {"image": structs, "label": [0, 1, -1, -1]}
    train = datasets.Dataset.from_dict({k: v[:2] for k, v in rows.items()}, kinds)
    test = datasets.Dataset.from_dict({k: v[2:] for k, v in rows.items()}, kinds)
    datasets.DatasetDict(train=train, test=test).save_to_disk(folder / "unlabelled-test")
    lists = datasets.Features(
        image=datasets.Image(), objects=datasets.Sequence(datasets.ClassLabel(names=["a", "b"]))
    )
    one = datasets.Dataset.from_dict({"image": structs, "objects": [[0], [1], [0], [1]]}, lists)
    datasets.DatasetDict(train=one).save_to_disk(folder / "lists-of-one")
    return {
        "pandas": ("parquet", labelled, ("4 images", "labels from 'label'")),
        "polars": ("parquet", labelled, ("images from 'photo', labels from 'species'",)),
        "sets [2024]": ("parquet", labelled, ()),
        "numbers": ("parquet", ["train:0", "train:1", "train:0", "train:1"], ("'fine_label'",)),
        "named [a-z]*": ("parquet", labelled, ("images from 'image_bytes'",)),
        "paths": ("parquet", labelled, ("labels from 'target'",)),
        "words": (SPLITS, ["test:a", "test:b", "train:a", "train:b"], ("train 2, test 2",)),
        "numbered": (SPLITS, ["test:a", "test:b", "train:a", "train:b"], ()),
        "unlabelled-test": (
            UNLABELLED_TEST,
            ["train:a", "train:b", "test:", "test:"],
            ("2 without a label",),
        ),
        "lists-of-one:label=objects": (LISTS, labelled, ("labels from 'objects'",)),
    }


CASES = [case for case in _CASES if case.files]
assert len({(case.kind, case.name) for case in CASES}) == len(CASES)
