"""Where fine-tuning starts: an artifact, or the same network from scratch."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

import clfew
from clfew.artifacts import About, load_encoder
from clfew.choices import choose_encoder, choose_size, normalisation, stored_side
from clfew.classifier import build_neck
from clfew.data.sources import Source
from clfew.data.store import Store, open_store, typical_side
from clfew.encoders import Encoder
from clfew.fitting import Start

SCRATCH = "scratch"


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


def from_artifact(artifact: Path, flip: bool | None) -> Origin:
    """Raises UserError for a file that is no artifact of clfew."""
    encoder, neck, about, seen = load_encoder(artifact)
    start = Start(encoder, neck, True, about.flip if flip is None else flip)
    return Origin(start, about, seen, artifact)


def from_scratch(
    source: Source, pretrained: About | None, encoder: str, size: int | None, flip: bool | None,
    device: torch.device, seed: int,
) -> Origin:  # fmt: skip
    """The network of a pretraining run (where `encoder` and `size` do not ask for another) without
    its training, else one chosen as pretraining would."""
    nothing_seen = np.array([], dtype=np.uint64)
    if pretrained is not None and encoder == "auto" and size is None:
        about = replace(pretrained, kind="encoder", method="", training={}, mode="", classes=[])
    else:
        native = typical_side(source)
        resolved, _ = choose_size(size, native, device)
        name, _ = choose_encoder(encoder, resolved, len(source), device)
        side = stored_side(resolved, native)
        store = open_store(source, side)
        mean, std = normalisation(store, store.good)
        about = About(
            kind="encoder", encoder=name, size=resolved, side=side, mean=mean, std=std, dim=1,
            method="", flip=True, clfew_version=clfew.__version__,
        )  # fmt: skip
    torch.manual_seed(seed)
    network = Encoder(about.encoder, about.size, about.mean, about.std)
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
