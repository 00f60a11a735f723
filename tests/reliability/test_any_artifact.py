"""Any file where an artifact is expected: refused in one sentence, or exactly what was written."""

import io
import json
import os
import pickle
import random
import resource
import struct
import time
from dataclasses import asdict

import numpy as np
import pytest
import safetensors.torch
import torch

from clfew.about import FORMAT_VERSION, About, read_about
from clfew.artifacts import load_classifier, load_encoder, save_classifier
from clfew.classifier import Classifier, build_neck
from clfew.encoders import Encoder
from clfew.errors import UserError
from clfew.seal import MAX_HEADER, seal

THOROUGH = bool(os.environ.get("CLFEW_THOROUGH"))
ABOUT = About(
    kind="classifier", encoder="resnet8-w8", size=16, side=16, mean=[0.4] * 3, std=[0.2] * 3, dim=32,
    method="simclr", flip=True, clfew_version="1", classes=["cat", "dog"], mode="linear",
    data={"finetune": {"source": "/images", "labels": 4}},
)  # fmt: skip


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    torch.manual_seed(0)
    encoder = Encoder(ABOUT.encoder, 16, ABOUT.mean, ABOUT.std)
    classifier = Classifier(encoder, build_neck(32, 0), torch.nn.Linear(32, 2))
    path = tmp_path_factory.mktemp("artifact") / "classifier.safetensors"
    digests = np.arange(5, dtype=np.uint64)
    save_classifier(path, classifier, ABOUT, digests, digests[:2])
    return path


def tensors_of(path):
    return safetensors.torch.load_file(path)


def write(path, about=None, tensors=None, sealed=True, **metadata):
    """A file with a valid seal, as somebody would make who knows how."""
    described = {"clfew": json.dumps(about if about is not None else asdict(ABOUT))} | metadata
    content = safetensors.torch.save(tensors or {"x": torch.ones(2)}, described)
    path.write_bytes(seal(content) if sealed else content)
    return path


def raw(path, header, data=b""):
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)
    return path


def assert_refused(path):
    """By every reader, in one sentence, in under a second of its own, with little memory."""
    for read in (read_about, load_encoder, load_classifier):
        started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(UserError) as error:
            read(path)
        assert time.process_time() - started < 1
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown * 1024 < 4 * path.stat().st_size + 64 * 2**20
        assert "\n" not in error.value.message and error.value.message.endswith(".")


FIELDS = {
    "no version": {"format_version": ...}, "a version to come": {"format_version": 99},
    "a version that is no number": {"format_version": "3"}, "true": {"format_version": True},
    "a class that is a number": {"classes": ["cat", 3]},
    "a class that is a list": {"classes": ["a", []]},
    "a class twice": {"classes": ["cat", "cat"]}, "one class": {"classes": ["cat"]},
    "another number of classes": {"classes": ["a", "b", "c"]},
    "classes that are none": {"classes": "ab"},
    "an unknown field": {"code": "import os"}, "a field too few": {"mean": ...},
    "an encoder there is not": {"encoder": "resnet8-w8; rm -rf /"},
    "a wider encoder": {"encoder": "resnet8-w512"}, "a deeper encoder": {"encoder": "resnet110-w8"},
    "an encoder of two and a half gigabytes": {"encoder": "vit_h_14", "size": 224},
    "an encoder within itself": {"encoder": "split:" * 40 + "resnet8-w8"},
    "an encoder too deep": {"encoder": "resnet6000002-w8"},
    "a path": {"encoder": "../../../etc/passwd"}, "a neck of a terabyte": {"neck": 2**20},
    "an adapter of a terabyte": {"adapter": 2**20}, "features of a terabyte": {"dim": 2**20},
    "a negative size": {"size": -16}, "a huge size": {"size": 10**9}, "a size of 0": {"size": 0},
    "a mean that is no number": {"mean": [0.5, float("nan"), 0.5]}, "a spread of 0": {"std": [0, 1, 1]},
    "a temperature of 0": {"temperature": 0.0}, "a temperature without end": {"temperature": 1e999},
    "another kind": {"kind": "pickle"}, "another mode": {"mode": "eval"},
    "a stage too high": {"stage": 60},
    "data that is none": {"data": []}, "what it sees": {"sees": "infrared"},
}  # fmt: skip


@pytest.mark.parametrize("change", FIELDS.values(), ids=FIELDS)
def test_a_description_that_cannot_be(artifact, tmp_path, change):
    content = {k: v for k, v in (asdict(ABOUT) | change).items() if v is not ...}
    path = write(tmp_path / "x.safetensors", content, tensors_of(artifact))
    with pytest.raises(UserError):
        load_classifier(path)
    for read in (read_about, load_encoder, load_classifier):
        started = time.process_time()
        try:
            read(path)
        except UserError as error:
            assert "\n" not in error.message
        assert time.process_time() - started < 1


def tensor(start, end, shape=(1,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


HEADERS = {
    "nothing": b"", "no JSON": b"{", "a list": b"[]", "null": b"null", "a number": b"7",
    "not UTF-8": b'{"\xff": 1}', "nested": b"[" * 100_000, "no tensors": b"{}",
    "overlapping": {"a": tensor(0, 4), "b": tensor(0, 4)},
    "a hole": {"a": tensor(0, 4), "b": tensor(8, 12)},
    "beyond the file": {"a": tensor(0, 4), "b": tensor(4, 2**40, (2**38 - 1,))},
    "negative": {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
    "a shape that overflows": {"a": tensor(0, 4, (2**62, 2**62))},
    "a shape that does not fit": {"a": tensor(0, 4, (7,))},
    "backwards": {"a": tensor(4, 0)}, "an unknown type": {"a": tensor(0, 4, dtype="PICKLE")},
    "metadata that is a list": {"__metadata__": [], "a": tensor(0, 4)},
    "metadata that is nested": {"__metadata__": {"clfew": {}}, "a": tensor(0, 4)},
    "a seal that is none": {"__metadata__": {"clfew": "{}", "seal": "0"}, "a": tensor(0, 4)},
}  # fmt: skip


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_a_header_that_cannot_be(tmp_path, header):
    assert_refused(raw(tmp_path / "x.safetensors", header, bytes(12)))


@pytest.mark.parametrize("size", [0, 7, MAX_HEADER + 1, 2**40, 2**64 - 1])
def test_a_header_of_a_size_that_cannot_be(tmp_path, size):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", size) + b"{}" * 50)
    assert_refused(path)


def test_ten_million_classes(tmp_path):
    names = ",".join(f'"{i}"' for i in range(10_000_000))
    description = json.dumps({"clfew": '{"classes": [' + names + "]}"})
    assert_refused(raw(tmp_path / "x.safetensors", f'{{"__metadata__": {description}}}'.encode()))


def test_more_classes_than_can_be_written_are_refused_at_once(artifact, tmp_path):
    classifier, about, _ = load_classifier(artifact)
    classes = [f"{i:0250d}" for i in range(70_000)]
    many = About(**asdict(about) | {"classes": classes})
    with pytest.raises(UserError, match="cannot be written"):
        save_classifier(tmp_path / "x", classifier, many, np.empty(0), np.empty(0))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers(artifact, tmp_path, value):
    tensors = tensors_of(artifact)
    tensors["classifier.head.weight"][1, 3] = value
    path = write(tmp_path / "x.safetensors", tensors=tensors)
    with pytest.raises(UserError, match="not finite"):
        load_classifier(path)


def test_a_file_whose_seal_was_taken_away(artifact, tmp_path):
    path = write(tmp_path / "x.safetensors", tensors=tensors_of(artifact), sealed=False)
    with pytest.raises(UserError, match="seal is missing"):
        load_classifier(path)


def test_one_changed_weight_is_noticed_where_weights_are_read(artifact, tmp_path):
    content = bytearray(artifact.read_bytes())
    content[-1000] ^= 1
    (tmp_path / "x.safetensors").write_bytes(content)
    read_about(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="not as they were written"):
        load_classifier(tmp_path / "x.safetensors")


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


def test_a_pickle_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    torch.save({"x": Bomb()}, buffer)
    for content in (pickle.dumps(Bomb()), buffer.getvalue()):
        (tmp_path / "x.safetensors").write_bytes(content)
        assert_refused(tmp_path / "x.safetensors")
    assert not (tmp_path / "exploded").exists()


def test_a_file_cut_anywhere_is_refused(artifact, tmp_path):
    whole = artifact.read_bytes()
    step = 64 if THOROUGH else 2048
    for size in range(0, len(whole), step):
        (tmp_path / "x.safetensors").write_bytes(whole[:size])
        with pytest.raises(UserError):
            read_about(tmp_path / "x.safetensors")


def mutated(whole: bytes, draw: random.Random) -> bytes:
    """A change that a disk, a network or a hand would make."""
    content = bytearray(whole)
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    for _ in range(draw.choice((1, 1, 1, 2, 8))):
        # Half of the changes are in the header, a small part of the file.
        place = draw.randrange(header if draw.random() < 0.5 else len(content))
        kind = draw.randrange(5)
        if kind == 0:
            content[place] ^= 1 << draw.randrange(8)
        elif kind == 1:
            content[place] = draw.randrange(256)
        elif kind == 2:
            del content[place : place + draw.randrange(1, 9)]
        elif kind == 3:
            content[place:place] = draw.randbytes(draw.randrange(1, 9))
        else:
            other = draw.randrange(len(content))
            content[place : place + 8] = content[other : other + 8]
    return bytes(content)


@pytest.mark.long
def test_any_mutation_is_refused_or_loads_what_was_written(artifact, tmp_path):
    whole, wanted = artifact.read_bytes(), tensors_of(artifact)
    draw, loaded, path = random.Random(6), 0, tmp_path / "x.safetensors"
    count = 10_000 if THOROUGH else 400
    for _ in range(count):
        path.write_bytes(mutated(whole, draw))
        try:
            classifier, about, seen = load_classifier(path)
        except UserError as error:
            assert str(path) in error.message and error.message.endswith(".")
            continue
        loaded += 1
        assert about == ABOUT
        state = classifier.state_dict()
        assert all(torch.equal(v, wanted[f"classifier.{n}"]) for n, v in state.items())
        assert [len(seen[step]) for step in ("pretraining", "finetuning")] == [5, 2]
    print(f"{count} mutations: {count - loaded} refused, {loaded} loaded as they were written")
    assert loaded < count / 20


def test_what_a_description_says_is_shown_and_never_run(clfew, artifact, tmp_path):
    evil = "<script>alert(1)</script>\x1b[2J/etc/passwd"
    about = asdict(ABOUT) | {"classes": [evil, "b"], "clfew_version": evil, "training": {evil: evil}}
    write(tmp_path / "x.safetensors", about, tensors_of(artifact), note=evil)
    shown = clfew.ok("info", "x.safetensors", cwd=tmp_path).stdout
    assert "\x1b" not in shown and "\\x1b[2J" in shown
    assert json.loads(clfew.ok("info", "x.safetensors", "--format", "json", cwd=tmp_path).stdout)


def test_the_format_that_is_written_is_the_one_that_is_read(artifact):
    assert read_about(artifact)[0].format_version == FORMAT_VERSION
