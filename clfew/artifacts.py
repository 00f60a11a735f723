"""Encoder and classifier files: safetensors with a checked description, readable without torch.

The metadata key "clfew" holds one JSON object (`About`). It is checked field by field before a
model is built from it, and weights are loaded strictly: every tensor, every shape, every value
finite.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import safetensors

from clfew.errors import UserError
from clfew.files import write_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from clfew.classifier import Classifier
    from clfew.encoders import Encoder

T = TypeVar("T")

FORMAT_VERSION = 2
KINDS = ("encoder", "classifier")
_OTHER_VERSION = "was it made by another version of clfew?"
MODES = ("full", "linear", "knn", "propagate")
"""How `finetune` makes a classifier."""

SEES = ("rgb", "lightness", "lab")
"""What of the images an encoder is given."""

DISTILLED = "distilled"
"""The mode of a classifier that `distill` made."""


@dataclass(frozen=True)
class About:
    """What an artifact says of itself.

    kind: "encoder" or "classifier". encoder: its name (see `clfew.encoders`). size: side in pixels
    of what the encoder sees. side: side at which images are stored before that. mean, std: of the
    three channels, for images in [0, 1]. dim: features. method: how the encoder was pretrained
    ("simclr"), "" from scratch. flip: whether mirror images mean the same. neck: width of the
    projector layer kept below the classifier, 0 for none. classes and mode: of a classifier.
    temperature: what its logits are divided by. adapter: width of the linear layer beside the
    network's features, 0 for none. sees, stage: what of the images the network is given, and the stage
    its features are read from (see `clfew.encoders.Encoder`). training: resolved settings, by step
    ("pretrain", "finetune"). data: source, fingerprint and the seed of the test split, by step likewise.
    """

    kind: str
    encoder: str
    size: int
    side: int
    mean: list[float]
    std: list[float]
    dim: int
    method: str
    flip: bool
    clfew_version: str
    neck: int = 0
    classes: list[str] = field(default_factory=list)
    mode: str = ""
    temperature: float = 1.0
    adapter: int = 0
    sees: str = "rgb"
    stage: int = 0
    training: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION


def _problem(about: dict[str, Any]) -> str:
    """What is wrong with a description read from a file, "" for nothing."""
    if about.get("format_version") != FORMAT_VERSION:
        return f"its format version is {about.get('format_version')!r}, not {FORMAT_VERSION}"
    kinds: dict[str, type] = {
        "kind": str, "encoder": str, "size": int, "side": int, "mean": list, "std": list, "dim": int,
        "method": str, "flip": bool, "clfew_version": str, "neck": int, "classes": list, "mode": str,
        "temperature": float, "adapter": int, "sees": str, "stage": int, "training": dict,
        "data": dict, "format_version": int,
    }  # fmt: skip
    if set(about) != set(kinds):
        return f"its fields differ: {', '.join(sorted(set(about) ^ set(kinds)))}"
    for name, kind in kinds.items():
        if type(about[name]) is not kind:
            return f"its field {name} is no {kind.__name__}"
    for name in ("mean", "std"):
        values = about[name]
        if len(values) != 3 or not all(type(v) in (int, float) and math.isfinite(v) for v in values):
            return f"its field {name} is not three numbers"
    if min(about["std"]) <= 0:
        return "its field std is not positive"
    if not all(type(name) is str for name in about["classes"]):
        return "its classes are not all names"
    if len(set(about["classes"])) != len(about["classes"]):
        return "it names a class twice"
    is_classifier = about["kind"] == "classifier"
    if about["kind"] not in KINDS or (
        about["mode"] not in (*MODES, DISTILLED) if is_classifier else about["mode"]
    ):
        return f"its kind is {about['kind']!r} with mode {about['mode']!r}"
    if is_classifier != (len(about["classes"]) >= 2):
        return f"an {about['kind']} with {len(about['classes'])} classes"
    if not 0 < about["temperature"] < math.inf:
        return "its temperature is no positive number"
    if not (4 <= about["size"] <= 4096 and 4 <= about["side"] <= 8192):
        return "its image size is out of range"
    if not (
        1 <= about["dim"] <= 2**20 and 0 <= about["neck"] <= 2**20 and 0 <= about["adapter"] <= 2**20
    ):
        return "its number of features is out of range"
    if about["sees"] not in SEES or not 0 <= about["stage"] <= 64:
        return f"it sees {about['sees']!r} at stage {about['stage']}"
    return ""


def read_about(path: Path) -> tuple[About, dict[str, tuple[int, ...]]]:
    """The description in an artifact and the shape of each tensor, without loading weights or torch.

    Raises UserError for anything that is not a whole clfew artifact.
    """
    hint = "encoder.safetensors and classifier.safetensors in a run folder are what clfew writes."
    if not path.is_file():
        raise UserError(f"There is no file {path}.", hint)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}).", hint) from None
    try:
        content = json.loads(metadata["clfew"])
    except (KeyError, ValueError, RecursionError):
        raise UserError(f"{path} is a safetensors file, but not one that clfew wrote.", hint) from None
    if isinstance(content, dict) and repr(content.get("format_version")) == "1":
        content |= {
            "format_version": FORMAT_VERSION,
            "temperature": 1.0,
            "adapter": 0,
            "sees": "rgb",
            "stage": 0,
        }  # What version 2 added.
    problem = _problem(content) if isinstance(content, dict) else "its description is no JSON object"
    if problem:
        raise UserError(f"{path} cannot be used: {problem}.", _OTHER_VERSION)
    return About(**content), shapes


def is_artifact(path: Path) -> bool:
    """Whether a file says that clfew wrote it; it may be damaged all the same."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return "clfew" in (file.metadata() or {})
    except (safetensors.SafetensorError, OSError):
        return False


def save_encoder(
    path: Path, encoder: "Encoder", projector: "Any", about: About, seen: np.ndarray
) -> None:
    """Writes an encoder and its projector. `seen` holds the digests of the images it learned from."""
    tensors = _prefixed("encoder", encoder) | _prefixed("projector", projector)
    tensors["seen.pretraining"] = _digests(seen)
    _save(path, tensors, about)


def save_classifier(
    path: Path, classifier: "Classifier", about: About, pretraining: np.ndarray, finetuning: np.ndarray
) -> None:
    """Writes a classifier with the digests of the images it learned from, with and without labels."""
    tensors = _prefixed("classifier", classifier)
    tensors["seen.pretraining"], tensors["seen.finetuning"] = _digests(pretraining), _digests(finetuning)
    _save(path, tensors, about)


def load_encoder(path: Path) -> "tuple[Encoder, Any, About, np.ndarray]":
    """The encoder, the projector's first layer (linear, BatchNorm, ReLU), the description, and the
    digests of the images it was pretrained on. A classifier's encoder can be loaded too; its
    layer below the classifier is then the projector's first.

    Raises UserError.
    """
    from clfew.classifier import build_neck, encoder_of

    about, _ = read_about(path)
    tensors = _load_tensors(path)
    encoder = _built(path, lambda: encoder_of(about))
    _check_dim(path, about, encoder)
    part = "encoder" if about.kind == "encoder" else "classifier.encoder"
    _load_strictly(path, encoder, _below(tensors, part))
    neck = build_neck(encoder.dim, about.neck)
    first_layer = {
        name: value
        for name, value in _below(
            tensors, "projector" if about.kind == "encoder" else "classifier.neck"
        ).items()
        if name.split(".")[0] in ("0", "1")
    }
    _load_strictly(path, neck, first_layer)
    return encoder, neck, about, _seen(path, tensors, "pretraining")


def load_classifier(path: Path) -> "tuple[Classifier, About, dict[str, np.ndarray]]":
    """The classifier, its description, and the digests of what it has seen, by step ("pretraining",
    "finetuning").

    Raises UserError, also for an encoder, which predicts nothing.
    """
    from clfew.classifier import Classifier

    about, shapes = read_about(path)
    if about.kind != "classifier":
        raise UserError(
            f"{path} is an {about.kind}, not a classifier.",
            f"make a classifier from it: clfew finetune --from {path} --labels 1%",
        )
    tensors = _load_tensors(path)
    classifier = _built(path, lambda: Classifier.build(about, shapes))
    _check_dim(path, about, classifier.encoder)
    _load_strictly(path, classifier, _below(tensors, "classifier"))
    seen = {step: _seen(path, tensors, step) for step in ("pretraining", "finetuning")}
    return classifier.eval(), about, seen


def _save(path: Path, tensors: "dict[str, Tensor]", about: About) -> None:
    import safetensors.torch

    description = json.dumps(asdict(about))
    write_bytes(path, safetensors.torch.save(tensors, {"clfew": description}))


def _prefixed(prefix: str, module: Any) -> "dict[str, Tensor]":
    return {f"{prefix}.{n}": v.detach().cpu().contiguous() for n, v in module.state_dict().items()}


def _below(tensors: "dict[str, Tensor]", prefix: str) -> "dict[str, Tensor]":
    return {n[len(prefix) + 1 :]: v for n, v in tensors.items() if n.startswith(prefix + ".")}


def _load_tensors(path: Path) -> "dict[str, Tensor]":
    import safetensors.torch

    return safetensors.torch.load_file(path)


def _load_strictly(path: Path, module: Any, tensors: "dict[str, Tensor]") -> None:
    infinite = [n for n, v in tensors.items() if v.is_floating_point() and not v.isfinite().all()]
    if infinite:
        raise UserError(
            f"{path} holds numbers that are not finite, in {infinite[0]}.", "train it again."
        )
    try:
        module.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split("\n\t")[1:2]).strip() or str(error)
        raise UserError(
            f"The weights in {path} do not fit the network it names ({reason}).",
            _OTHER_VERSION,
        ) from None


def _digests(digests: np.ndarray) -> "Tensor":
    """uint64 digests as int64, the same bits: torch computes little with uint64."""
    import torch

    return torch.from_numpy(np.sort(digests.astype(np.uint64)).view(np.int64).copy())


def _seen(path: Path, tensors: "dict[str, Tensor]", step: str) -> np.ndarray:
    """The digests that `_digests` stored."""
    import torch

    stored = tensors.get(f"seen.{step}")
    if stored is None or stored.dtype != torch.int64 or stored.ndim != 1:
        raise UserError(f"{path} does not say which images it has seen in {step}.", _OTHER_VERSION)
    return stored.numpy().view(np.uint64)


def _built(path: Path, build: "Callable[[], T]") -> "T":
    """What `build` makes of a description; its errors name the file."""
    try:
        return build()
    except UserError as error:
        raise UserError(f"{path} cannot be used: {error.message}", error.hint) from None


def _check_dim(path: Path, about: About, encoder: "Encoder") -> None:
    if about.dim != encoder.dim:
        raise UserError(
            f"{path} says {about.dim} features, but its encoder gives {encoder.dim}.", _OTHER_VERSION
        )
