"""The metadata of an artifact. It is read without torch, and checked field by field before a model is
built from it.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import safetensors

from clfew.data.pixel_scale import scale_from
from clfew.errors import UserError
from clfew.runs.checksum import Damaged, has_checksum, read_header

FORMAT_VERSION = 4
MOST_PARTS = 8
KINDS = ("encoder", "classifier")
OTHER_VERSION = "was it made by another version of clfew?"
MODES = ("full", "linear", "weighted", "knn", "propagate")
"""The ways in which `finetune` makes a classifier."""

INPUTS = ("rgb", "lightness", "lab")
"""The forms in which an encoder can get its images; see `clfew.models.encoder.as_input`."""

_DATA_FIELDS: dict[str, dict[str, tuple[type, ...]]] = {
    "pretrain": {"source": (str,), "split_seed": (int,)},
    "finetune": {
        "source": (str,),
        "split_seed": (int,),
        "labels": (int,),
        "label_file": (str, type(None)),
    },
}
"""The fields of a step's data that later commands read, with their types."""

DISTILLED = "distilled"
"""The mode of a classifier that `distill` made."""


@dataclass(frozen=True)
class ArtifactMetadata:
    """The metadata of an artifact.

    kind: "encoder" or "classifier". encoder: its name (see `clfew.models.backbones`). size: side in
    pixels of the encoder's input. side: side in pixels at which images are cached before that. mean,
    std: mean and standard deviation of the three channels, for images in [0, 1]. dim: number of
    features. method: how the encoder was pretrained ("simclr"), "" from scratch. flip: whether a
    mirrored image has the same class. neck: width of the projector layer kept below the classifier, 0
    for none. classes, mode: class names, and how the classifier was made; only for a classifier.
    temperature: the classifier's logits are divided by it. adapter: width of the linear layer beside the
    network's features, 0 for none. sees, stage: the form in which the network gets its images, and the
    stage its features are read from (see `clfew.models.encoder.Encoder`). training: resolved settings,
    by step ("pretrain", "finetune"). data: source, fingerprint and the seed of the test split, also by
    step. parts: where several encoders are used side by side (see `clfew.models.side_by_side`), the
    metadata of each, in the form of this class as a dict; then `encoder` lists their names, and `size`
    and `side` are the largest.
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
    parts: list[dict[str, Any]] = field(default_factory=list)
    format_version: int = FORMAT_VERSION


def _problem(metadata: dict[str, Any]) -> str:
    """Returns what is wrong with metadata read from a file, "" if nothing is."""
    if metadata.get("format_version") != FORMAT_VERSION:
        return f"its format version is {metadata.get('format_version')!r}, not {FORMAT_VERSION}"
    hints = get_type_hints(ArtifactMetadata)
    kinds: dict[str, type] = {name: get_origin(hint) or hint for name, hint in hints.items()}
    if set(metadata) != set(kinds):
        return f"it lacks fields or has unknown ones: {', '.join(sorted(set(metadata) ^ set(kinds)))}"
    for name, kind in kinds.items():
        if type(metadata[name]) is not kind:
            return f"its field {name} is not of the type {kind.__name__}"
    for name in ("training", "data"):
        if not all(type(step) is dict for step in metadata[name].values()):
            return f"its field {name} does not hold an object for each step"
    for problem in (
        _input_problem(metadata),
        _classes_problem(metadata),
        _training_problem(metadata["training"]),
        _finetuning_problem(metadata),
        _data_problem(metadata),
        _parts_problem(metadata),
    ):
        if problem:
            return problem
    return ""


def _input_problem(metadata: dict[str, Any]) -> str:
    """Returns what is wrong with what the network's input and features are, "" if nothing is."""
    for name in ("mean", "std"):
        values = metadata[name]
        if len(values) != 3 or not all(type(v) in (int, float) and abs(v) < 1e6 for v in values):
            return f"its field {name} is not three numbers"
    if min(metadata["std"]) < 1e-6:
        return "its field std is not positive"
    if not (4 <= metadata["size"] <= 1024 and 4 <= metadata["side"] <= 8192):
        return "its image size is out of range"
    if not (
        1 <= metadata["dim"] <= 2**20
        and 0 <= metadata["neck"] <= 2**20
        and 0 <= metadata["adapter"] <= 2**20
    ):
        return "its number of features is out of range"
    if metadata["sees"] not in INPUTS or not 0 <= metadata["stage"] <= 64:
        return f"its field sees is {metadata['sees']!r} and its stage {metadata['stage']}"
    return ""


def _classes_problem(metadata: dict[str, Any]) -> str:
    """Returns what is wrong with the kind, the mode and the classes, "" if nothing is."""
    if not all(type(name) is str for name in metadata["classes"]):
        return "its classes are not all names"
    if len(set(metadata["classes"])) != len(metadata["classes"]):
        return "it names a class twice"
    is_classifier = metadata["kind"] == "classifier"
    if metadata["kind"] not in KINDS or (
        metadata["mode"] not in (*MODES, DISTILLED) if is_classifier else metadata["mode"]
    ):
        return f"its kind is {metadata['kind']!r} with mode {metadata['mode']!r}"
    if is_classifier != (len(metadata["classes"]) >= 2):
        return (
            f"it is an artifact of the kind {metadata['kind']} with {len(metadata['classes'])} classes"
        )
    if not 0 < metadata["temperature"] < math.inf:
        return "its temperature is not a positive number"
    return ""


def _data_problem(metadata: dict[str, Any]) -> str:
    """Returns what is wrong with the data of a step, "" if nothing is."""
    is_classifier = metadata["kind"] == "classifier"
    needed = ["finetune"] * is_classifier + ["pretrain"] * ("pretrain" in metadata["data"])
    for step in needed:
        step_data = metadata["data"].get(step, {})
        if wrong := [
            key for key, kinds in _DATA_FIELDS[step].items() if type(step_data.get(key)) not in kinds
        ]:
            return f"its field data lacks a valid {wrong[0]} for {step}"
        if type(step_data.get("split_rule", 1)) is not int:
            return f"its field data has no valid split_rule for {step}"
        columns = step_data.get("label_columns", [None, None])
        if type(columns) is not list or [type(c) in (str, type(None)) for c in columns] != [True, True]:
            return f"its field data has no valid label_columns for {step}"
        for name in ("group_by", "content"):
            if type(step_data.get(name)) not in (str, type(None)):
                return f"its field data has no valid {name} for {step}"
        try:
            scale_from(step_data.get("pixels"))
        except ValueError as error:
            return f"its field data is not valid for {step}: {error}"
    return ""


def _parts_problem(metadata: dict[str, Any]) -> str:
    """Returns what is wrong with the encoders that are used side by side, "" if nothing is."""
    parts = metadata["parts"]
    if not parts:
        return ""
    if not 2 <= len(parts) <= MOST_PARTS:
        return f"it has {len(parts)} parts"
    for number, part in enumerate(parts, start=1):
        problem = _problem(part) if type(part) is dict else "it is not an object"
        if not problem and (part["kind"] != "encoder" or part["parts"]):
            problem = "it is not a single encoder"
        if problem:
            return f"its part {number} cannot be used: {problem}"
    if any(metadata[name] != max(part[name] for part in parts) for name in ("size", "side")):
        return "its image size is not that of its largest part"
    if metadata["adapter"] or metadata["stage"] or metadata["sees"] != "rgb":
        return "it has parts, and an adapter, a stage or an input of its own"
    return ""


def _training_problem(training: dict[str, dict[str, Any]]) -> str:
    """Returns what is wrong with those training settings that later commands read, "" if nothing is."""
    if not all(type(step.get("command", "")) is str for step in training.values()):
        return "a command in its field training is not text"
    if type(training.get("init", {"source": ""}).get("source")) is not str:
        return "its field training does not name the weights it started from"
    drift = training.get("pretrain", {}).get("drift", {})
    if type(drift) is not dict or not all(type(value) in (int, float) for value in drift.values()):
        return "its drift does not consist of numbers"
    if drift and not {"neighbours_kept", "rank_ratio"} <= set(drift):
        return "its drift is incomplete"
    return ""


def _finetuning_problem(metadata: dict[str, Any]) -> str:
    """Returns what is wrong with what later commands read of fine-tuning beside the data, "" if nothing
    is: the metric, the expected shares of the classes, and what the baselines reached."""
    if metadata["kind"] != "classifier":
        return ""
    finetuning, classes = metadata["training"].get("finetune", {}), metadata["classes"]
    metric = finetuning.get("metric", "accuracy")
    known = ("accuracy", "balanced", "macro-f1", *(f"ap:{name}" for name in classes))
    if type(metric) is not str or metric not in known:
        return "its metric is none of its classes"
    if (shares := finetuning.get("shares")) is not None:
        kinds = {"origin": str, "is_in_labels": bool, "classes": list}
        kinds |= dict.fromkeys(("share", "low", "high"), list)
        if type(shares) is not dict or any(type(shares.get(n)) is not kind for n, kind in kinds.items()):
            return "its class shares are incomplete"
        ends = [shares[name] for name in ("share", "low", "high")]
        if shares["classes"] != classes or any(len(end) != len(classes) for end in ends):
            return "its class shares are not those of its classes"
        if not all(_is_fraction(each) for end in ends for each in end):
            return "its class shares are not between 0 and 1"
    baselines = finetuning.get("baselines", [])
    for row in baselines if type(baselines) is list else [None]:
        if type(row) is not dict or type(row.get("name")) is not str:
            return "its baselines have no names"
        if not all(type(row[n]) is str if n in ("name", "class") else _is_fraction(row[n]) for n in row):
            return "its baselines are not between 0 and 1"
    return ""


def _is_fraction(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def read_metadata(path: Path) -> tuple[ArtifactMetadata, dict[str, tuple[int, ...]]]:
    """Reads the metadata of an artifact and the shape of each tensor, without loading weights or torch.

    Raises UserError if the file is not a complete clfew artifact.
    """
    hint = "clfew writes encoder.safetensors and classifier.safetensors to its run folders."
    if path.suffix == ".onnx":
        hint = "name the run that it was exported from, or run it as it is: python predict_onnx.py"
    if not path.is_file():
        raise UserError(f"There is no file {path}.", hint)
    try:
        header = read_header(path)
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: tuple(each.get_shape()) for name, each in slices.items()}
            types = {each.get_dtype() for each in slices.values()}
    except (safetensors.SafetensorError, Damaged, OSError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}).", hint) from None
    try:
        content = json.loads(metadata["clfew"])
    except (KeyError, ValueError, RecursionError):
        raise UserError(f"{path} is a safetensors file, but not one that clfew wrote.", hint) from None
    if isinstance(content, dict):
        version = repr(content.get("format_version"))
        if version == "1":
            content |= {"temperature": 1.0, "adapter": 0, "sees": "rgb", "stage": 0}  # New in version 2.
        if version in ("1", "2", "3"):
            content |= {"parts": [], "format_version": FORMAT_VERSION}  # New in version 4.
        if version in ("3", str(FORMAT_VERSION)) and not has_checksum(header):  # New in version 3.
            raise UserError(f"{path} cannot be used: its checksum is missing.", OTHER_VERSION)
    problem = _problem(content) if isinstance(content, dict) else "its metadata is not a JSON object"
    if others := types - {"F32", "I64"}:
        problem = f"it holds numbers of the type {min(others)}"
    if problem:
        raise UserError(f"{path} cannot be used: {problem}.", OTHER_VERSION)
    return ArtifactMetadata(**content), shapes


def is_artifact(path: Path) -> bool:
    """Whether a file is marked as written by clfew; it may still be damaged."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return "clfew" in (file.metadata() or {})
    except (safetensors.SafetensorError, OSError):
        return False
