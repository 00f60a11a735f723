"""Where fine-tuning starts: an artifact, or the same network from scratch."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clfew import console
from clfew.data.image_cache import ImageCache, open_image_cache, typical_side
from clfew.data.source import Source
from clfew.data.splits import evenly_spaced, test_indices
from clfew.errors import UsageError, UserError
from clfew.finetuning.fit import Start
from clfew.models.artifacts import load_encoder
from clfew.models.classifier import build_neck
from clfew.models.defaults import (
    cached_side,
    choose_encoder,
    choose_pretrained_size,
    choose_size,
    normalisation,
)
from clfew.models.encoder import Encoder
from clfew.models.init_weights import (
    AUTO,
    IMAGENET,
    SCRATCH,
    InitWeights,
    find_init_weights,
    load_init_weights,
    own_artifact,
)
from clfew.models.metadata import ArtifactMetadata, read_metadata
from clfew.runs.files import digest_of
from clfew.runs.folders import START, check_same_file, find_artifact, newest
from clfew.version import __version__

_PRETRAIN_FIRST = (
    "pretrain first: clfew pretrain FOLDER; or do without: clfew finetune --from scratch, or "
    "--init imagenet."
)


@dataclass(frozen=True)
class StartSpec:
    """Where fine-tuning is to start, before anything is loaded: a file that clfew wrote (`artifact`;
    from scratch it names the network), or weights from elsewhere (`init_weights`)."""

    artifact: Path | None
    init_weights: InitWeights | None
    is_scratch: bool

    @property
    def words(self) -> str:
        return SCRATCH if self.is_scratch or self.init_weights is None else self.init_weights.what


def find_start(origin: str | None, init: str, encoder: str, device: torch.device) -> StartSpec:
    """What --from and --init name together. Raises UserError; UsageError where they name two starts."""
    if origin is not None and init != AUTO:
        raise UsageError("--from and --init both say where to start.", "give one of them.")
    if SCRATCH in (origin, init):
        return StartSpec(newest("pretrain"), None, True)
    if origin is not None:
        return StartSpec(find_artifact(origin, "pretrain", _PRETRAIN_FIRST), None, False)
    if init == AUTO:
        artifact = newest("pretrain") if encoder == "auto" else None
        init_weights, why = (None, "") if artifact else find_init_weights(AUTO, encoder, device)
        if artifact is None and init_weights is None:
            find_artifact(None, "pretrain", _PRETRAIN_FIRST)  # Says that there is no run.
            raise UserError(f"There is nothing to start {encoder} from: {why}.", _PRETRAIN_FIRST)
        if init_weights is not None:
            console.say(f"start      {init_weights.what}, not pretrained on your images ({why})")
        return StartSpec(artifact, init_weights, False)
    if init != IMAGENET and (path := own_artifact(Path(init))):
        return StartSpec(path, None, False)
    return StartSpec(None, find_init_weights(init, encoder, device)[0], False)


def start_spec_row(spec: StartSpec) -> dict[str, Any]:
    """A start as a run's config.json keeps it, so that the run can be gone on with: see `restore_start_spec`."""
    init_weights = spec.init_weights
    return {
        "artifact": str(spec.artifact.resolve()) if spec.artifact else None,
        "digest": digest_of(spec.artifact) if spec.artifact else None,
        "weights": [init_weights.source, init_weights.encoder] if init_weights else None,
        "weights_digest": digest_of(Path(init_weights.source))
        if init_weights and _is_file(init_weights)
        else None,
        "is_scratch": spec.is_scratch,
    }


def _is_file(init_weights: InitWeights) -> bool:
    return Path(init_weights.source).is_file()


def restore_start_spec(named: dict[str, Any], device: torch.device) -> StartSpec:
    """The start that `start_spec_row` made. Raises UserError where its file is not what it was."""
    artifact = Path(named["artifact"]) if named["artifact"] else None
    if artifact is not None:
        check_same_file(artifact, named["digest"], "which the run started from")
    if named["weights"] is None:
        return StartSpec(artifact, None, named["is_scratch"])
    source, encoder = named["weights"]
    if named["weights_digest"]:
        check_same_file(Path(source), named["weights_digest"], "which the run started from")
    return StartSpec(artifact, find_init_weights(source, encoder, device)[0], named["is_scratch"])


def open_start(
    spec: StartSpec,
    source: Source,
    encoder: str,
    size: int | None,
    flip: bool | None,
    device: torch.device,
    seed: int,
    compare: bool,
    stage: int = 0,
) -> list[Start]:
    """The start, and where `compare` asks for it the pretrained weights that it was trained from too.

    stage: whose maps features are read from, counted from 1; 0 for the features of the encoder itself.
    """
    starts = _open_starts(spec, source, encoder, size, flip, device, seed, compare)
    return [_read_at(start, stage) for start in starts] if stage else starts


def _read_at(start: Start, stage: int) -> Start:
    encoder = start.encoder.read_at(stage)
    metadata = replace(start.metadata, stage=stage, dim=encoder.dim, adapter=0, neck=0)
    return replace(start, encoder=encoder, neck=build_neck(encoder.dim, 0), metadata=metadata)


def _open_starts(
    spec: StartSpec,
    source: Source,
    encoder: str,
    size: int | None,
    flip: bool | None,
    device: torch.device,
    seed: int,
    compare: bool,
) -> list[Start]:
    if spec.is_scratch:
        metadata = read_metadata(spec.artifact)[0] if spec.artifact else None
        return [start_from_scratch(source, metadata, encoder, size, flip, device, seed)]
    if spec.init_weights is not None:
        return [start_from_weights(source, spec.init_weights, size, flip, device)]
    assert spec.artifact is not None
    starts = [start_from_artifact(spec.artifact, flip)]
    before = spec.artifact.with_name(START)
    if compare and before.is_file() and before != spec.artifact:
        starts.append(start_from_artifact(before, flip))
    return starts


def start_from_artifact(artifact: Path, flip: bool | None) -> Start:
    """Raises UserError for a file that is no artifact of clfew."""
    encoder, neck, metadata, seen = load_encoder(artifact)
    is_published = metadata.training.get("pretrain", {}).get("init", SCRATCH) != SCRATCH
    is_published |= "init" in metadata.training
    flip = metadata.flip if flip is None else flip
    return Start(encoder, neck, True, flip, metadata, is_published, seen, artifact)


def start_from_weights(
    source: Source, init_weights: InitWeights, size: int | None, flip: bool | None, device: torch.device
) -> Start:
    """Published or foreign weights as they are. Raises UserError where they cannot be had."""
    native = typical_side(source)
    resolved, _ = choose_pretrained_size(size, native, init_weights.expected, device)
    mean, std = init_weights.expected.mean, init_weights.expected.std
    encoder = Encoder(init_weights.encoder, resolved, mean, std)
    load_init_weights(init_weights, encoder)
    metadata = ArtifactMetadata(
        kind="encoder",
        encoder=init_weights.encoder,
        size=resolved,
        side=cached_side(resolved, native),
        mean=mean,
        std=std,
        dim=encoder.dim,
        method="",
        flip=flip is not False,
        clfew_version=__version__,
        training={"init": {"what": init_weights.what, "source": init_weights.source}},
    )
    return Start(encoder, build_neck(encoder.dim, 0), True, metadata.flip, metadata, is_published=True)


def start_from_scratch(
    source: Source,
    pretrained: ArtifactMetadata | None,
    encoder: str,
    size: int | None,
    flip: bool | None,
    device: torch.device,
    seed: int,
    split_seed: int | None = None,
) -> Start:
    """The network of a pretraining run (where `encoder` and `size` do not ask for another) without
    its training, else one chosen as pretraining would. split_seed: of the test split; None is `seed`."""
    if pretrained is not None and encoder == "auto" and size is None:
        metadata = replace(
            pretrained,
            kind="encoder",
            method="",
            training={},
            mode="",
            classes=[],
            adapter=0,
            temperature=1.0,
        )
    else:
        native = typical_side(source)
        resolved, _ = choose_size(size, native, device)
        name, _ = choose_encoder(encoder, resolved, len(source), device)
        side = cached_side(resolved, native)
        cache = open_image_cache(source, side)
        held_out = test_indices(source, seed if split_seed is None else split_seed)
        known = np.setdiff1d(cache.good, held_out)
        mean, std = normalisation(cache, known if len(known) else cache.good)
        metadata = ArtifactMetadata(
            kind="encoder",
            encoder=name,
            size=resolved,
            side=side,
            mean=mean,
            std=std,
            dim=1,
            method="",
            flip=True,
            clfew_version=__version__,
        )
    torch.manual_seed(seed)
    network = Encoder(
        metadata.encoder, metadata.size, metadata.mean, metadata.std, 0, metadata.sees, metadata.stage
    )
    neck = build_neck(network.dim, metadata.neck or min(2 * network.dim, 2048))
    metadata = replace(metadata, dim=network.dim)
    return Start(network, neck, False, metadata.flip if flip is None else flip, metadata)


def other_images(
    start: Start, others: Source, cache: ImageCache, test_digests: np.ndarray, most: int
) -> np.ndarray:
    """Indices of at most `most` images that pretraining saw, none of them a copy of a test image."""
    usable = np.isin(cache.digests, start.seen) & ~np.isin(cache.digests, test_digests)
    return evenly_spaced(cache.good[usable[cache.good]], most)
