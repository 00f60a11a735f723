"""Finds and loads the network that fine-tuning starts from: an artifact, other weights or scratch."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clfew import console
from clfew.data.held_out import SPLIT_RULE, split_images
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
    "pretrain first: clfew pretrain FOLDER; or skip pretraining: clfew finetune --from scratch, or "
    "--init imagenet."
)


@dataclass(frozen=True)
class StartSpec:
    """Describes the start of fine-tuning before anything is loaded.

    artifact: a file that clfew wrote; from scratch, only its network is used, not its weights.
    init_weights: weights that do not come from a run of clfew. is_scratch: whether to start from random
    weights.
    """

    artifact: Path | None
    init_weights: InitWeights | None
    is_scratch: bool

    @property
    def words(self) -> str:
        """The start in words, for a start without an artifact to name."""
        return SCRATCH if self.is_scratch or self.init_weights is None else self.init_weights.what


def find_start(origin: str | None, init: str, encoder: str, device: torch.device) -> StartSpec:
    """Returns the start that --from (`origin`) and --init name. Raises UserError where there is none;
    UsageError where both options name one."""
    if origin is not None and init != AUTO:
        raise UsageError("--from and --init both name a start.", "give one of them.")
    if SCRATCH in (origin, init):
        return StartSpec(newest("pretrain"), None, True)
    if origin is not None:
        return StartSpec(find_artifact(origin, "pretrain", _PRETRAIN_FIRST), None, False)
    if init == AUTO:
        artifact = newest("pretrain") if encoder == "auto" else None
        init_weights, why = (None, "") if artifact else find_init_weights(AUTO, encoder, device)
        if artifact is None and init_weights is None:
            find_artifact(None, "pretrain", _PRETRAIN_FIRST)  # Raises UserError if there is no run.
            raise UserError(f"There is nothing to start {encoder} from: {why}.", _PRETRAIN_FIRST)
        if init_weights is not None:
            console.say(f"start      {init_weights.what}, not pretrained on your images ({why})")
        return StartSpec(artifact, init_weights, False)
    if init != IMAGENET and (path := own_artifact(Path(init))):
        return StartSpec(path, None, False)
    return StartSpec(None, find_init_weights(init, encoder, device)[0], False)


def start_spec_row(spec: StartSpec) -> dict[str, Any]:
    """Returns a start as a run's config.json keeps it, so that the run can be resumed (see
    `restore_start_spec`)."""
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


def restore_start_spec(row: dict[str, Any], device: torch.device) -> StartSpec:
    """Returns the start from the row that `start_spec_row` made of it. Raises UserError if its file has
    changed."""
    artifact = Path(row["artifact"]) if row["artifact"] else None
    if artifact is not None:
        check_same_file(artifact, row["digest"], "which the run started from")
    if row["weights"] is None:
        return StartSpec(artifact, None, row["is_scratch"])
    source, encoder = row["weights"]
    if row["weights_digest"]:
        check_same_file(Path(source), row["weights_digest"], "which the run started from")
    return StartSpec(artifact, find_init_weights(source, encoder, device)[0], row["is_scratch"])


@dataclass(frozen=True)
class Network:
    """Which network is asked for, where the start leaves it open.

    encoder, size: "auto" and None for those of the start. flip: None for that of the start. stage: the
    stage of the network whose feature maps are averaged to features, counted from 1; 0 for the encoder's
    own features. seed: of random weights. split_seed, split_rule: of the test split, whose images do not
    count for the normalisation; None is the seed.
    """

    encoder: str
    size: int | None
    flip: bool | None = None
    stage: int = 0
    seed: int = 0
    split_seed: int | None = None
    split_rule: int = SPLIT_RULE


def open_start(
    spec: StartSpec, source: Source, network: Network, device: torch.device, compare: bool
) -> list[Start]:
    """Loads the start and, if `compare` is set, also the weights that its pretraining started from,
    where these were kept."""
    starts = _open_starts(spec, source, network, device, compare)
    return [_read_at(start, network.stage) for start in starts] if network.stage else starts


def _read_at(start: Start, stage: int) -> Start:
    """Returns the start with an encoder whose features are read at a stage."""
    encoder = start.encoder.read_at(stage)
    metadata = replace(start.metadata, stage=stage, dim=encoder.dim, adapter=0, neck=0)
    return replace(start, encoder=encoder, neck=build_neck(encoder.dim, 0), metadata=metadata)


def _open_starts(
    spec: StartSpec, source: Source, network: Network, device: torch.device, compare: bool
) -> list[Start]:
    size, flip = network.size, network.flip
    if spec.is_scratch:
        metadata = read_metadata(spec.artifact)[0] if spec.artifact else None
        return [start_from_scratch(source, metadata, network, device)]
    if spec.init_weights is not None:
        return [start_from_weights(source, spec.init_weights, size, flip, device)]
    assert spec.artifact is not None
    starts = [start_from_artifact(spec.artifact, flip)]
    before = spec.artifact.with_name(START)
    if compare and before.is_file() and before != spec.artifact:
        starts.append(start_from_artifact(before, flip))
    return starts


def start_from_artifact(artifact: Path, flip: bool | None) -> Start:
    """Loads a start from an artifact. Raises UserError if the file is no artifact of clfew."""
    encoder, neck, metadata, seen = load_encoder(artifact)
    is_published = metadata.training.get("pretrain", {}).get("init", SCRATCH) != SCRATCH
    is_published |= "init" in metadata.training
    flip = metadata.flip if flip is None else flip
    return Start(encoder, neck, True, flip, metadata, is_published, seen, artifact)


def start_from_weights(
    source: Source, init_weights: InitWeights, size: int | None, flip: bool | None, device: torch.device
) -> Start:
    """Makes a start from pretrained weights or a checkpoint of another tool, without further training.

    Raises UserError if the weights cannot be loaded.
    """
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
    network: Network,
    device: torch.device,
) -> Start:
    """Returns the network of a pretraining run, without its training, where `network` does not ask for
    another; else one chosen as pretraining would."""
    encoder, size, flip, seed = network.encoder, network.size, network.flip, network.seed
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
        split_seed = seed if network.split_seed is None else network.split_seed
        held_out = test_indices(source, split_seed)
        known = split_images(cache, held_out, network.split_rule).pool
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
    built = Encoder(
        metadata.encoder, metadata.size, metadata.mean, metadata.std, 0, metadata.sees, metadata.stage
    )
    neck = build_neck(built.dim, metadata.neck or min(2 * built.dim, 2048))
    metadata = replace(metadata, dim=built.dim)
    return Start(built, neck, False, metadata.flip if flip is None else flip, metadata)


def other_images(
    start: Start, others: Source, cache: ImageCache, test_digests: np.ndarray, most: int
) -> np.ndarray:
    """Returns the indices of at most `most` images that the start was pretrained on, without copies of
    test images."""
    usable = np.isin(cache.digests, start.seen) & ~np.isin(cache.digests, test_digests)
    return evenly_spaced(cache.good[usable[cache.good]], most)
