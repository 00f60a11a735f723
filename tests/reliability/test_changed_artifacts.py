"""An artifact that was cut or changed is refused in one sentence, or loads as it was written."""

import random
import struct

import pytest
import torch
from fuzzing import THOROUGH, rounds
from made_artifacts import DIGESTS, ENCODER, METADATA, assert_refused, read_bounded, tensors_of

from clfew.models.artifacts import load_classifier, load_encoder


def test_a_file_cut_anywhere_is_refused(artifact, encoder_file, tmp_path):
    step = 64 if THOROUGH else 8192
    for whole in (artifact.read_bytes(), encoder_file.read_bytes()):
        for size in range(0, len(whole), step):
            (tmp_path / "x.safetensors").write_bytes(whole[:size])
            assert_refused(tmp_path / "x.safetensors")


def mutated(whole: bytes, draw: random.Random) -> bytes:
    """Returns the file with a change such as a disk, a network or an editor could make."""
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


def assert_written(loaded, read, tensors):
    """Asserts that what was loaded is what was written, to the last bit."""
    if read is load_classifier:
        classifier, metadata, seen = loaded
        state = {f"classifier.{name}": value for name, value in classifier.state_dict().items()}
        assert metadata == METADATA and [len(each) for each in seen.values()] == [5, 2]
    else:
        encoder, neck, metadata, seen = loaded
        state = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
        state |= {f"projector.{name}": value for name, value in neck.state_dict().items()}
        assert metadata == ENCODER and seen.tolist() == DIGESTS.tolist()
    assert state and all(torch.equal(value, tensors[name]) for name, value in state.items())


@pytest.mark.long
@pytest.mark.parametrize("read", [load_classifier, load_encoder])
def test_any_mutation_is_refused_or_loads_what_was_written(artifact, encoder_file, tmp_path, read):
    original = artifact if read is load_classifier else encoder_file
    whole, wanted, path = original.read_bytes(), tensors_of(original), tmp_path / "x.safetensors"
    count, loaded, least = 0, 0, 10_000 if THOROUGH else 100
    for number in rounds():
        draw = random.Random(number)
        for _ in range(least if number == 0 else 1000):
            path.write_bytes(mutated(whole, draw))
            found = read_bounded(read, path)
            count += 1
            if isinstance(found, str):
                assert str(path) in found
            else:
                loaded += 1
                assert_written(found, read, wanted)
    print(f"{read.__name__}: {count:,} mutations, {loaded:,} loaded as they were written")
    assert loaded < count / 20
