"""The options of the commands: one definition for each, so that they mean the same everywhere."""

import shlex
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from clfew.errors import UsageError
from clfew.runs.folders import read_config


class Format(str, Enum):
    table = "table"
    json = "json"


class RowFormat(str, Enum):
    table = "table"
    json = "json"
    jsonl = "jsonl"
    csv = "csv"


def _option(text: str, *names: str, metavar: str | None = None, least: float | None = None) -> Any:
    return typer.Option(*names, help=text, metavar=metavar, min=least)


def given(context: typer.Context) -> set[str]:
    """The names of the options that stand on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source and source.name == "COMMANDLINE"}


def check_resumed(context: typer.Context, command: str, folder: Path, free: set[str]) -> None:
    """Raises UsageError where an option beside --resume, but for those of `free`, asks for something
    else than the run was started with."""
    config = read_config(folder)
    before = config.get("arguments", {})
    for name in sorted(given(context) - free - {"resume"} if config else []):
        value, flag = context.params[name], _FLAGS.get(name, "--" + name.replace("_", "-"))
        if not _is_same(value, before.get(name)):
            had = "the default" if before.get(name) is None else before[name]
            was = f"{folder} was started with {had}" if name in before else "the run has it"
            raise UsageError(
                f"{flag} {value} cannot be changed on the way: {was}.",
                f"leave it out: clfew {command} --resume {shlex.quote(str(folder))}",
            )


def _is_same(value: Any, before: Any) -> bool:
    """Whether an option asks for what a run has: files are kept by their full names, and a run may be
    named by its folder."""
    if value == before or not (isinstance(value, str) and isinstance(before, str)):
        return bool(value == before)
    return Path(value).resolve() in (Path(before), Path(before).parent)


_FLAGS = {"source": "SOURCE", "origin": "--from"}


# In every command.
Out = Annotated[Path | None, _option("Folder to write; must not exist yet.")]
From = Annotated[str | None, _option("Run or artifact to work from.", "--from", metavar="RUN|FILE")]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of every random choice.")]
Device = Annotated[str, _option("auto, cpu, cuda, cuda:1, …")]
Precision = Annotated[str, _option("auto, bf16 or fp32.")]
Threads = Annotated[int | None, _option("CPU threads (default: all cores).", least=1)]
Output = Annotated[Format, _option("Of the result on stdout.", "--format")]
RowOutput = Annotated[RowFormat, _option("Of the rows on stdout.", "--format")]

# Of training.
Encoder = Annotated[
    str, _option("auto, resnet8-w32 and the like, any torchvision network, or timm:NAME.")
]
Init = Annotated[
    str,
    _option(
        "Weights to start from: auto (pretrained ones that are on this machine), imagenet, scratch, "
        "a run, or a file.",
        metavar="WEIGHTS",
    ),
]
Size = Annotated[int | None, typer.Option(min=8, max=1024, help="Side of the images (default: auto).")]
Batch = Annotated[int | None, _option("Images a step (default: auto).", least=2)]
Epochs = Annotated[float | None, _option("Passes over the images.", least=1e-9)]
Rate = Annotated[float | None, _option("Peak learning rate (default: auto).", "--lr", least=1e-9)]

# Of pretraining.
Source = Annotated[str | None, typer.Argument(help="Folder, CSV or hf:NAME.")]
Compile = Annotated[
    str,
    _option(
        "Compile the network: auto (where a trial says it pays), on or off. It changes how sums round.",
        "--compile",
    ),
]
Method = Annotated[
    str,
    _option(
        "simclr, byol, jigsaw, context-prediction, denoising, colorization, inpainting, split-brain or "
        "counting."
    ),
]
Minutes = Annotated[float | None, _option("Time to train for (default: at most 10).", least=0.01)]
Optimizer = Annotated[str, _option("auto, lars, sgd, adamw or muon.")]
Temperature = Annotated[float | None, _option("simclr: of its loss (default: 0.2).", least=0.01)]
Loss = Annotated[
    str | None, _option("simclr: nt-xent (default), or dcl (decoupled, for small batches).")
]
Corruption = Annotated[str | None, _option("denoising: masking (default), salt-and-pepper or gaussian.")]
Stacked = Annotated[bool | None, _option("denoising: one stage after the other.", "--stacked")]
Mask = Annotated[str | None, _option("inpainting: random (default) regions, or the centre.")]
Adversarial = Annotated[
    bool | None, _option("inpainting: let a discriminator judge too.", "--adversarial")
]
SaveSamples = Annotated[
    bool, _option("Write samples.png: what the method makes of a few images.", "--save-samples")
]
Flip = Annotated[bool, _option("--no-flip where mirror images differ.", "--flip/--no-flip")]
Transductive = Annotated[bool, _option("Learn from the test split's images too.", "--transductive")]
Adapt = Annotated[
    str,
    _option(
        "What pretrained weights learn with: a linear layer after them, or the network.",
        metavar="layer|network",
    ),
]
Resume = Annotated[Path | None, _option("Go on with an interrupted run.", metavar="RUN")]

# Of fine-tuning and testing.
Stage = Annotated[
    int,
    typer.Option(
        min=0,
        max=64,
        show_default=False,
        help="Read features from this stage of the encoder, counted from 1 (default: its own features).",
    ),
]
Labels = Annotated[
    str | None, _option("1%, 40 (in all), 4/class, all, or a CSV of path,label.", metavar="SPEC")
]
Labelled = Annotated[
    str | None,
    typer.Argument(help="Folder, CSV or hf:NAME (default: ./labeled, else what was pretrained on)."),
]
Mode = Annotated[str, _option("auto, full, linear, knn or propagate.")]
Repeat = Annotated[int, typer.Option(min=1, max=1000, help="Number of label draws.")]
SameFlip = Annotated[bool | None, _option("As in pretraining, if not given.", "--flip/--no-flip")]
Tested = Annotated[
    str | None,
    typer.Argument(help="Labelled images (default: the test split of what was fine-tuned on)."),
]

# Of distillation.
Unlabelled = Annotated[
    str | None, typer.Argument(help="Unlabelled images (default: what was pretrained on).")
]
Student = Annotated[
    str, _option("The student's encoder (default: the teacher's).", metavar="same|ENCODER")
]
Softness = Annotated[float, _option("Softens (above 1) or sharpens what the teacher says.", least=0.01)]
UseLabels = Annotated[
    bool, _option("Show labelled images with their labels.", "--use-labels/--no-labels")
]
Keep = Annotated[bool, _option("Keep the student even where nothing says it is better.", "--keep")]

# Of prediction.
Images = Annotated[list[str], typer.Argument(help="Files, folders, patterns, or - for a list on stdin.")]
Top = Annotated[int, _option("Number of labels a row.", least=1)]

# Of comparison.
Methods = Annotated[str, _option("Pretraining methods with commas between them, or all.")]
Budgets = Annotated[
    str, _option("Label budgets with commas between them: 1%, 40 (in all), 4/class, all.", "--labels")
]
Draws = Annotated[int, typer.Option(min=1, max=1000, help="Draws of the labels, the same for all.")]
Seeds = Annotated[int, typer.Option(min=1, max=100, help="Pretraining runs of each method.")]
MinutesEach = Annotated[
    float | None, _option("Of pretraining for each method (default: 10).", "--minutes", least=0.01)
]
EpochsEach = Annotated[float | None, _option("Of pretraining for each method.", "--epochs", least=1e-9)]
CompareMode = Annotated[str, _option("linear, knn or propagate on frozen features, or full.", "--mode")]
