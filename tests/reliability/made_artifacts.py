"""Intact and deceptive artifacts, and checks of how much time and memory reading them takes."""

import gc
import json
import os
import re
import struct
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torchvision  # noqa: F401 – otherwise the first read would import it, and its memory would count

from clfew.errors import UserError
from clfew.methods.simclr import projector
from clfew.models.artifacts import load_classifier, load_encoder, save_classifier, save_encoder
from clfew.models.classifier import Classifier, build_neck
from clfew.models.encoder import Encoder
from clfew.models.metadata import ArtifactMetadata, read_metadata
from clfew.runs.checksum import add_checksum

METADATA = ArtifactMetadata(
    kind="classifier", encoder="resnet8-w8", size=16, side=16, mean=[0.4] * 3, std=[0.2] * 3, dim=32,
    method="simclr", flip=True, clfew_version="1", classes=["cat", "dog"], mode="linear",
    data={"finetune": {"source": "/images", "labels": 4, "split_seed": 0, "label_file": None}},
)  # fmt: skip
ENCODER = replace(METADATA, kind="encoder", classes=[], mode="", neck=64, data={})
DIGESTS = np.arange(5, dtype=np.uint64)
READERS = (read_metadata, load_encoder, load_classifier)


def save_classifier_at(path):
    torch.manual_seed(0)
    encoder = Encoder(METADATA.encoder, 16, METADATA.mean, METADATA.std)
    classifier = Classifier(encoder, build_neck(32, 0), torch.nn.Linear(32, 2))
    save_classifier(path, classifier, METADATA, DIGESTS, DIGESTS[:2])
    return path


def save_encoder_at(path):
    torch.manual_seed(1)
    encoder = Encoder(METADATA.encoder, 16, METADATA.mean, METADATA.std)
    save_encoder(path, encoder, projector(32, 64, 128), ENCODER, DIGESTS)
    return path


def tensors_of(path):
    return safetensors.torch.load_file(path)


def write(path, fields=None, tensors=None, with_checksum=True, **metadata):
    """Writes an artifact with a valid checksum, as an attacker could."""
    described = {"clfew": json.dumps(fields if fields is not None else asdict(METADATA))} | metadata
    content = safetensors.torch.save(tensors or {"x": torch.ones(2)}, described)
    path.write_bytes(add_checksum(content) if with_checksum else content)
    return path


def raw(path, header, data=b""):
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)
    return path


def read_bounded(read, path):
    """Returns what a reader returns for a file, or the message of its UserError.

    Fails if it takes a second of processor time or more memory than a few copies of the file.
    """
    for attempt in (1, 2):
        started, before = time.process_time(), memory()
        try:
            found = read(path)
        except UserError as error:
            assert "\n" not in error.message and error.message.endswith(".") and error.hint
            found = error.message
        seconds, taken = time.process_time() - started, memory("VmHWM") - before
        is_bounded = seconds < 1 and taken < 4 * path.stat().st_size + 4 * 2**20
        if is_bounded or attempt == 2:
            break
        gc.collect()  # Garbage of earlier reads may have taken the memory.
    assert is_bounded, f"{seconds:.2f} s, {taken:,} bytes"
    return found


def memory(what="VmRSS"):
    """Returns the bytes of memory that the process uses; for "VmHWM", the most since the last call for
    "VmRSS". Returns 0 on systems other than Linux."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        return 0
    if what == "VmRSS":
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{what}:\s*(\d+) kB", status)[1])


def assert_refused(path, words=""):
    for read in READERS:
        found = read_bounded(read, path)
        assert isinstance(found, str) and words in found
