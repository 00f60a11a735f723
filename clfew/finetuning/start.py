"""Loads the network that fine-tuning starts from: an artifact, other weights or scratch."""

import copy
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from clfew.data.cache_folder import ImageCache
from clfew.data.held_out import SPLIT_RULE, split_source
from clfew.data.image_cache import open_image_cache, typical_side
from clfew.data.source import Source
from clfew.data.splits import evenly_spaced
from clfew.finetuning.places import renamed
from clfew.models.artifacts import digests_by_step, load_encoder
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
    SCRATCH,
    InitWeights,
    derives_from_published,
    load_init_weights,
    seen_before,
)
from clfew.models.metadata import ArtifactMetadata, read_metadata
from clfew.models.side_by_side import SideBySide
from clfew.runs.folders import START
from clfew.version import __version__


@dataclass(frozen=True)
class Start:
    """The network that fine-tuning starts from.

    encoder, neck: the network and the first layer of its projector. is_pretrained: whether its weights
    are trained rather than random. flip: whether mirror images mean the same. metadata: its artifact
    metadata. is_published: whether its weights derive from pretrained weights that others published,
    which training should change only in small steps. seen, taught: uint64, digests of the images that it
    was trained on without labels and with labels. artifact: the file it was loaded from, None for other
    weights.
    """

    encoder: Encoder
    neck: nn.Sequential
    is_pretrained: bool
    flip: bool
    metadata: ArtifactMetadata
    is_published: bool = False
    seen: np.ndarray = field(default_factory=lambda: np.array([], dtype=np.uint64))
    artifact: Path | None = None
    taught: np.ndarray = field(default_factory=lambda: np.array([], dtype=np.uint64))

    @property
    def pretraining_source(self) -> str | None:
        """The source of the images it was pretrained on, None where there is none."""
        return self.metadata.data.get("pretrain", {}).get("source")

    @property
    def words(self) -> str:
        """The artifact it was loaded from, else its weights in words."""
        if self.artifact is not None:
            return str(self.artifact.resolve())
        if self.metadata.parts:
            return f"{self.metadata.encoder}, side by side"
        return self.metadata.training.get("init", {}).get("what", SCRATCH)


def relocated(start: Start, names: Collection[str], now: str) -> Start:
    """Returns a start whose images of the sources `names` lie in `now`."""
    return replace(start, metadata=renamed(start.metadata, names, now))


@dataclass(frozen=True)
class Network:
    """Which network is asked for, where the start leaves it open.

    encoder, size: "auto" and None for those of the start. flip: None for that of the start. stage: the
    stage of the network whose feature maps are averaged to features, counted from 1; 0 for the encoder's
    own features. from_scratch: whether its weights are random, and seed: of these. split_seed,
    split_rule: of the test split, whose images do not count for the normalisation; None is the seed.
    """

    encoder: str
    size: int | None
    flip: bool | None = None
    stage: int = 0
    seed: int = 0
    split_seed: int | None = None
    split_rule: int = SPLIT_RULE
    from_scratch: bool = False


def open_starts(
    found: list[Path | InitWeights | None],
    source: Source,
    network: Network,
    device: torch.device,
    compare: bool,
) -> list[Start]:
    """Loads the starts that `find_starts` found: several, or what `open_start` loads of one."""
    if len(found) == 1:
        return open_start(found[0], source, network, device, compare)
    return [start for each in found for start in open_start(each, source, network, device, False)]


def open_start(
    found: Path | InitWeights | None,
    source: Source,
    network: Network,
    device: torch.device,
    compare: bool,
) -> list[Start]:
    """Loads the start that `find_start` found and, if `compare` is set, also the weights that its
    pretraining started from, where these were kept."""
    starts = _open_starts(found, source, network, device, compare)
    return [_read_at(start, network.stage) for start in starts] if network.stage else starts


def _read_at(start: Start, stage: int) -> Start:
    """Returns the start with an encoder whose features are read at a stage."""
    encoder = start.encoder.read_at(stage)
    metadata = replace(start.metadata, stage=stage, dim=encoder.dim, adapter=0, neck=0)
    return replace(start, encoder=encoder, neck=build_neck(encoder.dim, 0), metadata=metadata)


def _open_starts(
    found: Path | InitWeights | None,
    source: Source,
    network: Network,
    device: torch.device,
    compare: bool,
) -> list[Start]:
    if network.from_scratch:
        metadata = read_metadata(found)[0] if isinstance(found, Path) else None
        return [start_from_scratch(source, metadata, network, device)]
    assert found is not None
    if isinstance(found, InitWeights):
        return [start_from_weights(source, found, network.size, network.flip, device)]
    starts = [start_from_artifact(found, network.flip)]
    before = found.with_name(START)
    if compare and before.is_file() and before != found:
        starts.append(start_from_artifact(before, network.flip))
    return starts


def start_from_artifact(artifact: Path, flip: bool | None) -> Start:
    """Loads a start from an artifact. Raises UserError if the file is no artifact of clfew."""
    encoder, neck, metadata, seen = load_encoder(artifact)
    _, taught = digests_by_step(artifact)
    is_published = derives_from_published(metadata)
    flip = metadata.flip if flip is None else flip
    return Start(encoder, neck, True, flip, metadata, is_published, seen, artifact, taught)


def side_by_side(starts: list[Start], features_of_each: Callable[[SideBySide], np.ndarray]) -> Start:
    """Returns a start whose features are those of several starts (see `SideBySide`). features_of_each:
    returns the own features of each, (N, D), by which they are standardised."""
    encoder = SideBySide([copy.deepcopy(start.encoder) for start in starts])
    encoder.standardise_by(features_of_each(encoder))
    each = [start.metadata for start in starts]
    parts = [replace(m, kind="encoder", neck=0, classes=[], mode="", temperature=1.0) for m in each]
    # Where its training and its images are told, they are those of one of the starts.
    first = max(starts, key=lambda start: ("pretrain" in start.metadata.data, start.is_published))
    metadata = replace(
        first.metadata,
        kind="encoder",
        encoder=encoder.name,
        size=encoder.size,
        side=max(m.side for m in each),
        dim=encoder.dim,
        method=" + ".join(dict.fromkeys(m.method for m in each if m.method)),
        flip=all(start.flip for start in starts),
        neck=0,
        classes=[],
        mode="",
        temperature=1.0,
        adapter=0,
        sees="rgb",
        stage=0,
        parts=[asdict(part) for part in parts],
    )
    return Start(
        encoder,
        build_neck(encoder.dim, 0),
        True,
        metadata.flip,
        metadata,
        any(start.is_published for start in starts),
        np.unique(np.concatenate([start.seen for start in starts])),
        None,
        np.unique(np.concatenate([start.taught for start in starts])),
    )


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
    neck, seen = build_neck(encoder.dim, 0), seen_before(init_weights)
    return Start(encoder, neck, True, metadata.flip, metadata, is_published=True, seen=seen)


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
        known = split_source(source, cache, split_seed, network.split_rule).pool
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
    seen: np.ndarray, others: Source, cache: ImageCache, test_digests: np.ndarray, most: int
) -> np.ndarray:
    """Returns the indices of at most `most` images that were pretrained on, without copies of test
    images. seen: digests of what was pretrained on."""
    usable = np.isin(cache.digests, seen) & ~np.isin(cache.digests, test_digests)
    return evenly_spaced(cache.good[usable[cache.good]], most)
