"""Encoder and classifier files: safetensors with checksums and checked metadata.

The safetensors metadata key "clfew" holds one JSON object (`ArtifactMetadata`). Weights are loaded
strictly: every tensor must be present, have the right shape and hold only finite values.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from clfew.errors import UserError
from clfew.models.metadata import DISTILLED, OTHER_VERSION, ArtifactMetadata, read_metadata
from clfew.runs.checksum import Damaged, add_checksum, check_data, read_header
from clfew.runs.files import write_bytes

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from clfew.models.classifier import Classifier
    from clfew.models.encoder import Encoder

M = TypeVar("M", bound="Module")

EVIDENCE = "evidence"
"""The tensors of a classifier that are not its weights."""


def save_encoder(
    path: Path, encoder: "Encoder", projector: "Any", metadata: ArtifactMetadata, seen: np.ndarray
) -> None:
    """Writes an encoder and its projector. `seen` holds the digests of the images it was trained on."""
    tensors = _prefixed("encoder", encoder) | _prefixed("projector", projector)
    tensors["seen.pretraining"] = _digests(seen)
    _save(path, tensors, metadata)


def save_classifier(
    path: Path,
    classifier: "Classifier",
    metadata: ArtifactMetadata,
    pretraining: np.ndarray,
    finetuning: np.ndarray,
    evidence: dict[str, np.ndarray] | None = None,
) -> None:
    """Writes a classifier, with the digests of the images it was trained on without labels
    (`pretraining`) and with labels (`finetuning`), and what thresholds are chosen by (see
    `read_evidence`).
    """
    import torch

    tensors = _prefixed("classifier", classifier)
    tensors["seen.pretraining"], tensors["seen.finetuning"] = _digests(pretraining), _digests(finetuning)
    for name, values in (evidence or {}).items():
        kind = np.float32 if values.dtype.kind == "f" else np.int64
        tensors[f"{EVIDENCE}.{name}"] = torch.from_numpy(np.ascontiguousarray(values.astype(kind)))
    _save(path, tensors, metadata)


def read_evidence(path: Path) -> dict[str, np.ndarray]:
    """Returns what a classifier's thresholds are chosen by, as far as the file has it: of a random
    sample of test images `test.confidence`, float32 (T,), and `test.right`, int64 (T,); of the labels
    `labels.probabilities`, float32 (L, C), each of a classifier that was not fitted to it,
    `labels.classes`, int64 (L,), and `labels.weights`, float32 (L,), the number of images that each
    stands for. Raises UserError if the file cannot be used."""
    metadata, _ = read_metadata(path)
    found = {name: each.numpy() for name, each in _below(_load_tensors(path), EVIDENCE).items()}
    for names in (("test.right", "test.confidence"), _OF_LABELS):
        some = [name for name in names if name in found]
        if some and (len(some) < len(names) or not _fit_together([found[n] for n in names], metadata)):
            raise UserError(f"{path} cannot be used: its {EVIDENCE} is damaged.", OTHER_VERSION)
    return found


_OF_LABELS = ("labels.classes", "labels.weights", "labels.probabilities")


def _fit_together(values: list[np.ndarray], metadata: ArtifactMetadata) -> bool:
    """Returns whether arrays are of the same images, the third one with a column for each class."""
    shape = values[0].shape
    wanted = [shape, shape, (*shape, len(metadata.classes))]
    return len(shape) == 1 and all(
        each.shape == wanted[n] and bool(np.isfinite(each).all()) for n, each in enumerate(values)
    )


def load_encoder(path: Path) -> "tuple[Encoder, Any, ArtifactMetadata, np.ndarray]":
    """Loads an encoder. Returns the encoder, the projector's first layer (linear, BatchNorm, ReLU), the
    metadata, and the digests of the images it was pretrained on.

    The encoder of a classifier can be loaded too; the classifier's neck then takes the place of the
    projector's first layer.

    Raises UserError if the file cannot be used.
    """
    from clfew.models.classifier import build_neck, encoder_of

    metadata, shapes = read_metadata(path)
    is_encoder = metadata.kind == "encoder"
    part, below = ("encoder", "projector") if is_encoder else ("classifier.encoder", "classifier.neck")
    layers = [f"{below}.{layer}" for layer in ("0", "1")]
    first = {name: shape for name, shape in shapes.items() if name.startswith(tuple(layers))}
    encoder = _built(path, lambda: encoder_of(metadata), shapes, part)
    _check_dim(path, metadata, encoder)
    neck = _built(path, lambda: build_neck(encoder.dim, metadata.neck), first, below)
    tensors = _load_tensors(path)
    _load_strictly(path, encoder, _below(tensors, part))
    first_layer_tensors = {n: v for n, v in _below(tensors, below).items() if f"{below}.{n}" in first}
    _load_strictly(path, neck, first_layer_tensors)
    return encoder, neck, metadata, _seen(path, tensors, "pretraining")


def load_classifier(path: Path) -> "tuple[Classifier, ArtifactMetadata, dict[str, np.ndarray]]":
    """Loads a classifier. Returns the classifier in eval mode, its metadata, and the digests of the
    images it was trained on, by step ("pretraining", "finetuning").

    Raises UserError if the file cannot be used or holds an encoder, which has no classes to predict.
    """
    from clfew.models.classifier import Classifier

    metadata, shapes = read_metadata(path)
    if metadata.kind != "classifier":
        raise UserError(
            f"{path} is an {metadata.kind}, not a classifier.",
            f"make a classifier from it: clfew finetune --from {path} --labels 1%",
        )
    classifier = _built(path, lambda: Classifier.build(metadata, shapes), shapes, "classifier")
    tensors = _load_tensors(path)
    _check_dim(path, metadata, classifier.encoder)
    _load_strictly(path, classifier, _below(tensors, "classifier"))
    seen = {step: _seen(path, tensors, step) for step in ("pretraining", "finetuning")}
    return classifier.eval(), metadata, seen


def digests_of_trained(path: Path) -> np.ndarray:
    """Returns the digests of all images that the network of an artifact was trained on, sorted: without
    labels, and with labels where these changed the network and not only a head on it. Raises UserError
    if the file cannot be used."""
    unlabelled, labelled = digests_by_step(path)
    return np.union1d(unlabelled, labelled)


def digests_by_step(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns what `digests_of_trained` does, without labels and with labels apart."""
    metadata, _ = read_metadata(path)
    tensors = _load_tensors(path)
    changed = metadata.kind == "classifier" and metadata.mode in ("full", DISTILLED)
    labelled = _seen(path, tensors, "finetuning") if changed else np.array([], dtype=np.uint64)
    return _seen(path, tensors, "pretraining"), labelled


def _save(path: Path, tensors: "dict[str, Tensor]", metadata: ArtifactMetadata) -> None:
    import safetensors.torch

    encoded = json.dumps(asdict(metadata))
    try:
        content = add_checksum(safetensors.torch.save(tensors, {"clfew": encoded}))
    except Damaged as error:
        raise UserError(
            f"{path} cannot be written: {error}.", "use fewer or shorter class names."
        ) from None
    write_bytes(path, content)


def _prefixed(prefix: str, module: Any) -> "dict[str, Tensor]":
    return {f"{prefix}.{n}": v.detach().cpu().contiguous() for n, v in module.state_dict().items()}


def _below(tensors: "dict[str, Tensor]", prefix: str) -> "dict[str, Tensor]":
    return {n[len(prefix) + 1 :]: v for n, v in tensors.items() if n.startswith(prefix + ".")}


def _load_tensors(path: Path) -> "dict[str, Tensor]":
    import safetensors.torch

    try:
        check_data(path, read_header(path))
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, Damaged, OSError) as error:
        raise UserError(f"{path} cannot be used: {error}.", "make it again, or use a copy.") from None


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
            f"The weights in {path} do not fit the network named in its metadata ({reason}).",
            OTHER_VERSION,
        ) from None


def _digests(digests: np.ndarray) -> "Tensor":
    """Returns uint64 digests, sorted, as an int64 tensor of the same bits: torch supports few operations
    on uint64.
    """
    import torch

    return torch.from_numpy(np.sort(digests.astype(np.uint64)).view(np.int64).copy())


def _seen(path: Path, tensors: "dict[str, Tensor]", step: str) -> np.ndarray:
    """Returns the uint64 digests that `_digests` wrote for a step."""
    import torch

    digests = tensors.get(f"seen.{step}")
    if digests is None or digests.dtype != torch.int64 or digests.ndim != 1:
        raise UserError(f"{path} does not list the images used in {step}.", OTHER_VERSION)
    return digests.numpy().view(np.uint64)


def _built(path: Path, build: "Callable[[], M]", shapes: dict[str, tuple[int, ...]], prefix: str) -> "M":
    """Returns the module that `build` makes from an artifact's metadata, if its tensors have the names
    and shapes that the file holds below `prefix`.

    The module is first built without allocating memory: damaged metadata must not be able to request
    more memory than the file's weights need. Raises UserError that names the file.
    """
    from clfew.models.backbones import ShapesOnly

    try:
        with ShapesOnly():
            wanted = {f"{prefix}.{n}": tuple(v.shape) for n, v in build().state_dict().items()}
        found = {name: shape for name, shape in shapes.items() if name.startswith(f"{prefix}.")}
        if wanted == found:
            return build()
    except UserError as error:
        raise UserError(f"{path} cannot be used: {error.message}", error.hint) from None
    name = min(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n))
    raise UserError(
        f"The weights in {path} do not fit the network named in its metadata ({name}: the file has "
        f"{found.get(name, 'no such tensor')}, the network {wanted.get(name, 'no such tensor')}).",
        OTHER_VERSION,
    )


def _check_dim(path: Path, metadata: ArtifactMetadata, encoder: "Encoder") -> None:
    if metadata.dim != encoder.dim:
        raise UserError(
            f"The metadata of {path} names {metadata.dim} features, but its encoder has {encoder.dim}.",
            OTHER_VERSION,
        )
