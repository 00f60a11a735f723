"""The settings of each command: one class a command, read by everything that needs them.

Its fields are the options on the command line and the keywords of the Python function (see
`signatures`), and what config.json keeps to compare with on resume (`arguments_of`).
"""

from dataclasses import KW_ONLY, asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from clfew import options as opt
from clfew.data.lists import is_list, with_columns
from clfew.errors import UsageError


class _OfLists:
    """Settings of a command that reads a source, which may be a list. The columns that were named become
    part of the name of the list, so that whatever keeps that name keeps them."""

    def __post_init__(self) -> None:
        values: dict[str, Any] = vars(self)
        for name in ("source", "labels"):  # From Python, they may be paths.
            if isinstance(values.get(name), Path):
                object.__setattr__(self, name, str(values[name]))
        if values.get("bands") is not None:
            object.__setattr__(self, "bands", _checked_bands(values["bands"]))
        columns = values["path_column"], values["label_column"]
        if columns == (None, None):
            return
        name = "labels" if is_list(values.get("labels") or "") else "source"
        named = values[name] or ""
        if not is_list(named) and not named.startswith("hf:"):
            raise UsageError(
                "--path-column and --label-column name columns of a list, and no list was named.",
                "for example: clfew finetune photos.csv --label-column species --labels 1%",
            )
        # From here on the settings are frozen.
        object.__setattr__(self, name, with_columns(named, *columns))
        object.__setattr__(self, "path_column", None)
        object.__setattr__(self, "label_column", None)


@dataclass(frozen=True)
class PretrainSettings(_OfLists):
    """The settings of `pretrain`. epochs, minutes: the budget, one of them or neither."""

    source: opt.Source = None
    _: KW_ONLY
    path_column: opt.PathColumn = None
    label_column: opt.LabelColumn = None
    bands: opt.Bands = None
    group_by: opt.GroupBy = None
    method: opt.Method = "simclr"
    encoder: opt.Encoder = "auto"
    init: opt.PretrainInit = "auto"
    size: opt.Size = None
    epochs: opt.EpochsOrRun = None
    minutes: opt.Minutes = None
    batch: opt.Batch = None
    optimizer: opt.Optimizer = "auto"
    lr: opt.Rate = None
    temperature: opt.Temperature = None
    loss: opt.Loss = None
    corruption: opt.Corruption = None
    stacked: opt.Stacked = None
    mask: opt.Mask = None
    adversarial: opt.Adversarial = None
    flip: opt.Flip = True
    transductive: opt.Transductive = False
    adapt: opt.Adapt = "layer"
    save_samples: opt.SaveSamples = False
    seed: opt.Seed = 0
    device: opt.Device = "auto"
    precision: opt.Precision = "auto"
    compile: opt.Compile = "auto"
    threads: opt.Threads = None
    out: opt.Out = None
    options: opt.MethodOptions = None

    METHOD_OPTIONS: ClassVar = ("temperature", "loss", "corruption", "stacked", "mask", "adversarial")
    """The fields that belong to a method, None for its default."""


@dataclass(frozen=True)
class FinetuneSettings(_OfLists):
    """The settings of `finetune`."""

    source: opt.Labelled = None
    _: KW_ONLY
    path_column: opt.PathColumn = None
    label_column: opt.LabelColumn = None
    bands: opt.Bands = None
    group_by: opt.GroupBy = None
    labels: opt.Labels = None
    origin: opt.Froms = None
    init: opt.Init = "auto"
    mode: opt.Mode = "auto"
    shares: opt.Shares = "auto"
    metric: opt.ChosenBy = "auto"
    stage: opt.Stage = 0
    repeat: opt.Repeat = 1
    encoder: opt.Encoder = "auto"
    size: opt.Size = None
    epochs: opt.Epochs = None
    batch: opt.Batch = None
    lr: opt.Rate = None
    flip: opt.SameFlip = None
    seed: opt.Seed = 0
    device: opt.Device = "auto"
    precision: opt.Precision = "auto"
    threads: opt.Threads = None
    out: opt.Out = None


@dataclass(frozen=True)
class DistillSettings(_OfLists):
    """The settings of `distill`. epochs, minutes: the budget, one of them or neither."""

    source: opt.Unlabelled = None
    _: KW_ONLY
    path_column: opt.PathColumn = None
    label_column: opt.LabelColumn = None
    origin: opt.From = None
    student: opt.Student = "same"
    init: opt.Init = "auto"
    size: opt.Size = None
    epochs: opt.EpochsOrRun = None
    minutes: opt.Minutes = None
    batch: opt.Batch = None
    lr: opt.Rate = None
    temperature: opt.Softness = 1.0
    use_labels: opt.UseLabels = True
    keep: opt.Keep = False
    adapt: opt.Adapt = "layer"
    seed: opt.Seed = 0
    device: opt.Device = "auto"
    precision: opt.Precision = "auto"
    threads: opt.Threads = None
    out: opt.Out = None


@dataclass(frozen=True)
class EvaluateSettings(_OfLists):
    """The settings of `eval`."""

    source: opt.Tested = None
    _: KW_ONLY
    path_column: opt.PathColumn = None
    label_column: opt.LabelColumn = None
    origin: opt.From = None
    device: opt.Device = "auto"
    precision: opt.Precision = "auto"
    threads: opt.Threads = None
    out: opt.Out = None


@dataclass(frozen=True)
class CheckSettings(_OfLists):
    """The settings of `check`."""

    source: opt.Checked = None
    _: KW_ONLY
    path_column: opt.PathColumn = None
    label_column: opt.LabelColumn = None
    bands: opt.Bands = None
    group_by: opt.GroupBy = None
    full: opt.Full = False
    origin: opt.Looking = None
    init: opt.LookingInit = None
    fix: opt.Fix = None
    seed: opt.Seed = 0
    device: opt.Device = "auto"
    precision: opt.Precision = "auto"
    threads: opt.Threads = None
    out: opt.Out = None


@dataclass(frozen=True)
class SelectSettings(_OfLists):
    """The settings of `select`. budget, test: how many images to choose and to draw, one or both."""

    source: opt.Chosen = None
    _: KW_ONLY
    path_column: opt.PathColumn = None
    label_column: opt.LabelColumn = None
    bands: opt.Bands = None
    group_by: opt.GroupBy = None
    budget: opt.Budget = None
    test: opt.TestSample = None
    labels: opt.SoFar = None
    strategy: opt.Strategy = "auto"
    find: opt.Find = None
    origin: opt.From = None
    init: opt.Init = "auto"
    seed: opt.Seed = 0
    device: opt.Device = "auto"
    precision: opt.Precision = "fp32"
    threads: opt.Threads = None
    out: opt.Out = None


@dataclass(frozen=True)
class LabelSettings(_OfLists):
    """The settings of `label`. test: how many images to draw to test on, None for the usual number."""

    source: opt.Chosen = None
    _: KW_ONLY
    path_column: opt.PathColumn = None
    label_column: opt.LabelColumn = None
    bands: opt.Bands = None
    group_by: opt.GroupBy = None
    classes: opt.Classes = None
    budget: opt.LabelBudget = None
    test: opt.LabelTest = None
    labels: opt.SoFar = None
    origin: opt.From = None
    init: opt.Init = "auto"
    browser: opt.Browser = True
    port: opt.Port = None
    seed: opt.Seed = 0
    device: opt.Device = "auto"
    precision: opt.Precision = "auto"
    threads: opt.Threads = None
    out: opt.Out = None


@dataclass(frozen=True)
class PredictSettings:
    """The settings of `predict`."""

    images: opt.Images
    origin: opt.From = None
    _: KW_ONLY
    top: opt.Top = 3
    accept: opt.Accept = None
    min_precision: opt.MinPrecision = None
    min_recall: opt.MinRecall = None
    device: opt.Device = "auto"
    precision: opt.Precision = "auto"
    threads: opt.Threads = None


@dataclass(frozen=True)
class EmbedSettings(_OfLists):
    """The settings of `embed`."""

    source: opt.Embedded
    _: KW_ONLY
    path_column: opt.PathColumn = None
    label_column: opt.LabelColumn = None
    bands: opt.Bands = None
    origin: opt.From = None
    init: opt.Init = "auto"
    encoder: opt.Encoder = "auto"
    size: opt.Size = None
    stage: opt.Stage = 0
    device: opt.Device = "auto"
    precision: opt.Precision = "auto"
    threads: opt.Threads = None
    out: opt.Out = None


@dataclass(frozen=True)
class ExportSettings(_OfLists):
    """The settings of `export`. accept, min_precision, min_recall: what is decided by where the file is
    run, as in `predict`."""

    source: opt.Proven = None
    _: KW_ONLY
    path_column: opt.PathColumn = None
    label_column: opt.LabelColumn = None
    origin: opt.From = None
    int8: opt.Int8 = False
    accept: opt.Accept = None
    min_precision: opt.MinPrecision = None
    min_recall: opt.MinRecall = None
    threads: opt.Threads = None
    out: opt.OnnxOut = None


@dataclass(frozen=True)
class CompareSettings(_OfLists):
    """The settings of `compare`. epochs, minutes: the budget of each method, one of them or neither."""

    source: opt.Source = None
    _: KW_ONLY
    path_column: opt.PathColumn = None
    label_column: opt.LabelColumn = None
    bands: opt.Bands = None
    group_by: opt.GroupBy = None
    methods: opt.Methods = "all"
    labels: opt.Budgets = "1%,5%,10%"
    draws: opt.Draws = 5
    seeds: opt.Seeds = 1
    minutes: opt.MinutesEach = None
    epochs: opt.EpochsEach = None
    encoder: opt.Encoder = "auto"
    size: opt.Size = None
    mode: opt.CompareMode = "linear"
    flip: opt.Flip = True
    seed: opt.Seed = 0
    device: opt.Device = "auto"
    precision: opt.Precision = "auto"
    threads: opt.Threads = None
    out: opt.Out = None


def _checked_bands(bands: Any) -> str:
    """Returns the bands that a user named as text, such as "4,3,2". Raises UsageError."""
    text = ",".join(map(str, bands)) if isinstance(bands, (list, tuple)) else str(bands)
    parts = [part.strip() for part in text.split(",")]
    numbers = [int(part) if part.isdecimal() and len(part) < 5 else 0 for part in parts]
    if len(numbers) not in (1, 3) or min(numbers) < 1:
        raise UsageError(
            f"--bands {text[:40]} does not name one band or three, by numbers from 1.",
            "for example --bands 4,3,2 for red, green and blue.",
        )
    return ",".join(map(str, numbers))


def bands_of(
    settings: PretrainSettings
    | FinetuneSettings
    | EmbedSettings
    | CompareSettings
    | CheckSettings
    | SelectSettings,
) -> tuple[int, ...] | None:
    """Returns the bands that are taken as red, green and blue, or the one that is grey; None where no
    bands were named."""
    return tuple(map(int, settings.bands.split(","))) if settings.bands else None


def source_of(settings: PretrainSettings | CompareSettings) -> str:
    """Returns the name of the source. Raises UsageError if none was given."""
    if settings.source is None:
        command = type(settings).__name__.removesuffix("Settings").lower()
        example = "./photos" if command == "compare" else "./unlabeled"
        raise UsageError("No SOURCE of images was named.", f"for example: clfew {command} {example}")
    return settings.source


def labels_of(settings: FinetuneSettings) -> str:
    """Returns the label budget or list. Raises UsageError if none was given."""
    if settings.labels is None:
        raise UsageError("The option --labels was not given.", "for example: clfew finetune --labels 1%")
    return settings.labels


def check_exporting(settings: ExportSettings) -> None:
    """Raises UsageError if the file to write is not named like an ONNX file."""
    if settings.out is not None and settings.out.suffix.lower() != ".onnx":
        raise UsageError(
            f"--out {settings.out} does not name an ONNX file.", "for example: --out classifier.onnx"
        )
    if settings.int8 and (settings.accept or settings.min_precision or settings.min_recall):
        raise UsageError(
            "Thresholds come from the classifier's own probabilities, which 8 bits change.",
            "leave out --int8, or --accept, --min-precision and --min-recall.",
        )


def arguments_of(settings: Any) -> dict[str, Any]:
    """Returns the settings as config.json keeps them, with names of files as text."""
    return {n: str(v) if isinstance(v, Path) else v for n, v in asdict(settings).items()}
