"""Where fine-tuning starts: an artifact, or the same network from scratch."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clfew import console
from clfew.data.image_cache import Store, open_store, typical_side
from clfew.data.source import Source
from clfew.data.splits import test_indices
from clfew.errors import UsageError, UserError
from clfew.finetuning.fit import Start
from clfew.models.artifacts import load_encoder
from clfew.models.classifier import build_neck
from clfew.models.defaults import (
    choose_encoder,
    choose_pretrained_size,
    choose_size,
    normalisation,
    stored_side,
)
from clfew.models.encoder import Encoder
from clfew.models.init_weights import (
    AUTO,
    IMAGENET,
    SCRATCH,
    Initial,
    find_initial,
    load_initial,
    own_artifact,
)
from clfew.models.metadata import About, read_about
from clfew.runs.files import digest_of
from clfew.runs.folders import START, check_same_file, find_artifact, newest
from clfew.version import __version__

_PRETRAIN_FIRST = (
    "pretrain first: clfew pretrain FOLDER; or do without: clfew finetune --from scratch, or "
    "--init imagenet."
)


@dataclass(frozen=True)
class Origin:
    """start: the network. about: its description. seen: digests of the images it learned from without
    labels. artifact: the file it came from, None from scratch."""

    start: Start
    about: About
    seen: np.ndarray
    artifact: Path | None

    @property
    def pretraining_source(self) -> str | None:
        return self.about.data.get("pretrain", {}).get("source")


@dataclass(frozen=True)
class Found:
    """Where fine-tuning is to start, before anything is loaded: a file that clfew wrote (`artifact`;
    from scratch it names the network), or weights from elsewhere (`initial`)."""

    artifact: Path | None
    initial: Initial | None
    is_scratch: bool

    @property
    def words(self) -> str:
        return SCRATCH if self.is_scratch or self.initial is None else self.initial.what


def find_start(origin: str | None, init: str, encoder: str, device: torch.device) -> Found:
    """What --from and --init name together. Raises UserError; UsageError where they name two starts."""
    if origin is not None and init != AUTO:
        raise UsageError("--from and --init both say where to start.", "give one of them.")
    if SCRATCH in (origin, init):
        return Found(newest("pretrain"), None, True)
    if origin is not None:
        return Found(find_artifact(origin, "pretrain", _PRETRAIN_FIRST), None, False)
    if init == AUTO:
        artifact = newest("pretrain") if encoder == "auto" else None
        initial, why = (None, "") if artifact else find_initial(AUTO, encoder, device)
        if artifact is None and initial is None:
            find_artifact(None, "pretrain", _PRETRAIN_FIRST)  # Says that there is no run.
            raise UserError(f"There is nothing to start {encoder} from: {why}.", _PRETRAIN_FIRST)
        if initial is not None:
            console.say(f"start      {initial.what}, not pretrained on your images ({why})")
        return Found(artifact, initial, False)
    if init != IMAGENET and (path := own_artifact(Path(init))):
        return Found(path, None, False)
    return Found(None, find_initial(init, encoder, device)[0], False)


def named_start(found: Found) -> dict[str, Any]:
    """A start as a run's config.json keeps it, so that the run can be gone on with: see `refound`."""
    initial = found.initial
    return {
        "artifact": str(found.artifact.resolve()) if found.artifact else None,
        "digest": digest_of(found.artifact) if found.artifact else None,
        "weights": [initial.source, initial.encoder] if initial else None,
        "weights_digest": digest_of(Path(initial.source)) if initial and _is_file(initial) else None,
        "is_scratch": found.is_scratch,
    }


def _is_file(initial: Initial) -> bool:
    return Path(initial.source).is_file()


def refound(named: dict[str, Any], device: torch.device) -> Found:
    """The start that `named_start` kept. Raises UserError where its file is not what it was."""
    artifact = Path(named["artifact"]) if named["artifact"] else None
    if artifact is not None:
        check_same_file(artifact, named["digest"], "which the run started from")
    if named["weights"] is None:
        return Found(artifact, None, named["is_scratch"])
    source, encoder = named["weights"]
    if named["weights_digest"]:
        check_same_file(Path(source), named["weights_digest"], "which the run started from")
    return Found(artifact, find_initial(source, encoder, device)[0], named["is_scratch"])


def open_start(
    found: Found, source: Source, encoder: str, size: int | None, flip: bool | None,
    device: torch.device, seed: int, compare: bool, stage: int = 0,
) -> list[Origin]:  # fmt: skip
    """The start, and where `compare` asks for it the pretrained weights that it was trained from too.

    stage: whose maps features are read from, counted from 1; 0 for the features of the encoder itself.
    """
    origins = _origins(found, source, encoder, size, flip, device, seed, compare)
    return [_read_at(origin, stage) for origin in origins] if stage else origins


def _read_at(origin: Origin, stage: int) -> Origin:
    encoder = origin.start.encoder.read_at(stage)
    start = replace(origin.start, encoder=encoder, neck=build_neck(encoder.dim, 0))
    about = replace(origin.about, stage=stage, dim=encoder.dim, adapter=0, neck=0)
    return replace(origin, start=start, about=about)


def _origins(
    found: Found, source: Source, encoder: str, size: int | None, flip: bool | None,
    device: torch.device, seed: int, compare: bool,
) -> list[Origin]:  # fmt: skip
    if found.is_scratch:
        about = read_about(found.artifact)[0] if found.artifact else None
        return [from_scratch(source, about, encoder, size, flip, device, seed)]
    if found.initial is not None:
        return [from_initial(source, found.initial, size, flip, device)]
    assert found.artifact is not None
    origins = [from_artifact(found.artifact, flip)]
    before = found.artifact.with_name(START)
    if compare and before.is_file() and before != found.artifact:
        origins.append(from_artifact(before, flip))
    return origins


def from_artifact(artifact: Path, flip: bool | None) -> Origin:
    """Raises UserError for a file that is no artifact of clfew."""
    encoder, neck, about, seen = load_encoder(artifact)
    is_published = about.training.get("pretrain", {}).get("init", SCRATCH) != SCRATCH
    is_published |= "init" in about.training
    start = Start(encoder, neck, True, about.flip if flip is None else flip, is_published)
    return Origin(start, about, seen, artifact)


def from_initial(
    source: Source, initial: Initial, size: int | None, flip: bool | None, device: torch.device
) -> Origin:
    """Published or foreign weights as they are. Raises UserError where they cannot be had."""
    native = typical_side(source)
    resolved, _ = choose_pretrained_size(size, native, initial.expected, device)
    mean, std = initial.expected.mean, initial.expected.std
    encoder = Encoder(initial.encoder, resolved, mean, std)
    load_initial(initial, encoder)
    about = About(
        kind="encoder", encoder=initial.encoder, size=resolved, side=stored_side(resolved, native),
        mean=mean, std=std, dim=encoder.dim, method="", flip=flip is not False,
        clfew_version=__version__,
        training={"init": {"what": initial.what, "source": initial.source}},
    )  # fmt: skip
    start = Start(encoder, build_neck(encoder.dim, 0), True, about.flip, is_published=True)
    return Origin(start, about, np.array([], dtype=np.uint64), None)


def from_scratch(
    source: Source, pretrained: About | None, encoder: str, size: int | None, flip: bool | None,
    device: torch.device, seed: int, split_seed: int | None = None,
) -> Origin:  # fmt: skip
    """The network of a pretraining run (where `encoder` and `size` do not ask for another) without
    its training, else one chosen as pretraining would. split_seed: of the test split; None is `seed`."""
    nothing_seen = np.array([], dtype=np.uint64)
    if pretrained is not None and encoder == "auto" and size is None:
        about = replace(
            pretrained, kind="encoder", method="", training={}, mode="", classes=[], adapter=0,
            temperature=1.0,
        )  # fmt: skip
    else:
        native = typical_side(source)
        resolved, _ = choose_size(size, native, device)
        name, _ = choose_encoder(encoder, resolved, len(source), device)
        side = stored_side(resolved, native)
        store = open_store(source, side)
        held_out = test_indices(source, seed if split_seed is None else split_seed)
        known = np.setdiff1d(store.good, held_out)
        mean, std = normalisation(store, known if len(known) else store.good)
        about = About(
            kind="encoder", encoder=name, size=resolved, side=side, mean=mean, std=std, dim=1,
            method="", flip=True, clfew_version=__version__,
        )  # fmt: skip
    torch.manual_seed(seed)
    network = Encoder(about.encoder, about.size, about.mean, about.std, 0, about.sees, about.stage)
    neck = build_neck(network.dim, about.neck or min(2 * network.dim, 2048))
    about = replace(about, dim=network.dim)
    start = Start(network, neck, False, about.flip if flip is None else flip)
    return Origin(start, about, nothing_seen, None)


def other_images(
    origin: Origin, others: Source, decoded: Store, test_digests: np.ndarray, most: int
) -> np.ndarray:
    """Indices of at most `most` images that pretraining saw, none of them a copy of a test image."""
    usable = np.isin(decoded.digests, origin.seen) & ~np.isin(decoded.digests, test_digests)
    chosen = decoded.good[usable[decoded.good]]
    spread = np.linspace(0, len(chosen) - 1, min(most, len(chosen))).astype(int)
    return chosen[np.unique(spread)]
