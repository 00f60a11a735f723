"""The options of the commands. Each is defined once, with its type, unit and help, so that it means the
same in every command. `clfew.settings` says which command has which, and with what default.
"""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer


@dataclass(frozen=True)
class PythonOnly:
    """Marks a keyword of a Python function that no command line has."""

    help: str


LEAST_EPOCHS = 1e-9


class Format(str, Enum):
    table = "table"
    json = "json"


class RowFormat(str, Enum):
    table = "table"
    json = "json"
    jsonl = "jsonl"
    csv = "csv"


def _epochs(text: str) -> float | str:
    """Reads a number of epochs; other text is the name of a run. Raises BadParameter for a number that
    is too small."""
    try:
        value = float(text)
    except ValueError:
        return text
    if not value >= LEAST_EPOCHS:  # Not a number, too.
        raise typer.BadParameter(f"{text} is not in the range x>={LEAST_EPOCHS}.")
    return value


def _option(text: str, *names: str, metavar: str | None = None, least: float | None = None) -> Any:
    return typer.Option(*names, help=text, metavar=metavar, min=least)


# In every command.
Out = Annotated[Path | None, _option("Folder to write to; it must not exist yet.")]
From = Annotated[
    str | None, _option("Run or artifact to use (default: the newest).", "--from", metavar="RUN|FILE")
]
Froms = Annotated[
    list[str] | None,
    _option(
        "Run or artifact to use (default: the newest). Given several times, all are compared, each "
        "alone and their features side by side.",
        "--from",
        metavar="RUN|FILE",
    ),
]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of every random choice.")]
Device = Annotated[str, _option("Device to compute on: auto, cpu, cuda, cuda:1, …")]
Precision = Annotated[str, _option("Precision to compute in: auto, bf16 or fp32.")]
Threads = Annotated[int | None, _option("CPU threads (default: all cores).", least=1)]
Output = Annotated[Format, _option("Format of the result on stdout.", "--format")]
RowOutput = Annotated[RowFormat, _option("Format of the rows on stdout.", "--format")]

# For training.
Encoder = Annotated[
    str,
    _option(
        "Network to train: auto, resnetD-wW such as resnet8-w32, any torchvision network, or timm:NAME."
    ),
]
Init = Annotated[
    str,
    _option(
        "Weights to start from: auto (pretrained weights found on this machine), imagenet, scratch, "
        "a run, or a file.",
        metavar="WEIGHTS",
    ),
]
PretrainInit = Annotated[
    str,
    _option(
        "Weights to start from: auto (pretrained weights found on this machine), imagenet, scratch, "
        "a run, a file, or both (two runs with half of the minutes each, from pretrained weights and "
        "from scratch, to choose from).",
        "--init",
        metavar="WEIGHTS",
    ),
]
Size = Annotated[
    int | None, typer.Option(min=8, max=1024, help="Side of the images in pixels (default: auto).")
]
Batch = Annotated[int | None, _option("Images per step (default: auto).", least=2)]
Epochs = Annotated[float | None, _option("Passes over the images.", least=LEAST_EPOCHS)]
# A number, or a run; typer knows no type for the two.
EpochsOrRun = Annotated[
    Any,
    typer.Option(
        "--epochs",
        help="Passes over the images; or a run with --minutes, to take the same steps again.",
        metavar="N|RUN",
        parser=_epochs,
    ),
]
Rate = Annotated[float | None, _option("Peak learning rate (default: auto).", "--lr", least=1e-9)]

# For lists of images, wherever one is read.
PathColumn = Annotated[
    str | None, _option("Column of the paths in a list of images (default: found by its name).")
]
LabelColumn = Annotated[
    str | None, _option("Column of the labels in a list of images (default: found by its name).")
]

# For images with other bands than red, green and blue.
Bands = Annotated[
    str | None,
    _option(
        "Bands to take as red, green and blue, such as 4,3,2, or the one to take as grey (default: "
        "1,2,3, where images have more than three).",
        metavar="N,N,N",
    ),
]

# For images that belong together.
GroupBy = Annotated[
    str | None,
    _option(
        "What keeps images together, on one side of every split: the number of a folder in their paths, "
        "or a regular expression with one group, such as '(.*)_[0-9]+'.",
        metavar="N|REGEX",
    ),
]

# For pretraining.
Source = Annotated[str | None, typer.Argument(help="Folder, CSV or hf:NAME.")]
Compile = Annotated[
    str,
    _option(
        "Compile the network: auto (if a trial shows that it is faster), on or off. "
        "Compiling changes how sums are rounded.",
        "--compile",
    ),
]
Method = Annotated[
    str,
    _option(
        "Pretraining method: simclr, byol, jigsaw, context-prediction, denoising, colorization, "
        "inpainting, split-brain or counting."
    ),
]
Minutes = Annotated[float | None, _option("Minutes to train for (default: at most 10).", least=0.01)]
Optimizer = Annotated[str, _option("Optimizer: auto, lars, sgd, adamw or muon.")]
Temperature = Annotated[
    float | None, _option("simclr: temperature of the loss (default: 0.2).", least=0.01)
]
Loss = Annotated[
    str | None, _option("simclr: loss, nt-xent (default) or dcl (decoupled, for small batches).")
]
Corruption = Annotated[
    str | None, _option("denoising: kind of noise, masking (default), salt-and-pepper or gaussian.")
]
Stacked = Annotated[bool | None, _option("denoising: train one stage after the other.", "--stacked")]
Mask = Annotated[str | None, _option("inpainting: region to mask, random (default) or centre.")]
Adversarial = Annotated[
    bool | None, _option("inpainting: train against a discriminator too.", "--adversarial")
]
MethodOptions = Annotated[
    dict[str, Any] | None, PythonOnly("Options of the method by name, for one that was registered.")
]
SaveSamples = Annotated[
    bool,
    _option("Write samples.png, which shows what the method does with a few images.", "--save-samples"),
]
Flip = Annotated[bool, _option("Whether mirror images mean the same.", "--flip/--no-flip")]
Transductive = Annotated[bool, _option("Learn from the test split's images too.", "--transductive")]
Adapt = Annotated[
    str,
    _option(
        "What is trained if pretraining starts from pretrained weights: a linear layer after the frozen "
        "network, or the whole network.",
        metavar="layer|network",
    ),
]
Resume = Annotated[Path | None, _option("Resume an interrupted run.", metavar="RUN")]

# For fine-tuning and testing.
Stage = Annotated[
    int,
    typer.Option(
        min=0,
        max=64,
        show_default=False,
        help="Read features from this stage of the encoder, counted from 1 (default: its output).",
    ),
]
Labels = Annotated[
    str | None,
    _option(
        "Labels to use: 1%, 40 (in all), 4/class, 40/random, all, or a CSV of path,label (and split).",
        metavar="SPEC",
    ),
]
Labelled = Annotated[
    str | None,
    typer.Argument(help="Folder, CSV or hf:NAME (default: ./labeled, else the images of pretraining)."),
]
Mode = Annotated[
    str, _option("How the classifier is trained: auto, full, linear, weighted, knn or propagate.")
]
Shares = Annotated[
    str,
    _option(
        "Share of each class among all images: auto (from the labels, where they show it), equal, "
        "labels (as among the labels), per cent such as rest=95,target=5, or a CSV of class,share.",
    ),
]
ChosenBy = Annotated[
    str,
    _option(
        "What --mode auto chooses by: accuracy, balanced, macro-f1, ap:CLASS (average precision of a "
        "class), or auto (macro-f1 where classes have unequal shares, else accuracy).",
        "--metric",
    ),
]
Repeat = Annotated[int, typer.Option(min=1, max=1000, help="Number of label samples.")]
SameFlip = Annotated[
    bool | None,
    _option("Whether mirror images mean the same (default: as in pretraining).", "--flip/--no-flip"),
]
Tested = Annotated[
    str | None,
    typer.Argument(help="Labelled images (default: the test split of the fine-tuning images)."),
]

# For distillation.
Unlabelled = Annotated[
    str | None, typer.Argument(help="Unlabelled images (default: the images of pretraining).")
]
Student = Annotated[
    str, _option("The student's encoder (default: the teacher's).", metavar="same|ENCODER")
]
Softness = Annotated[
    float,
    _option(
        "Distillation temperature: above 1 softens the teacher's outputs, below 1 sharpens.", least=0.01
    ),
]
UseLabels = Annotated[
    bool,
    _option(
        "Train on the labels of labelled images, not on what the teacher predicts for them.",
        "--use-labels/--no-labels",
    ),
]
Keep = Annotated[bool, _option("Keep the student even if it is not shown to be better.", "--keep")]

# For features.
Embedded = Annotated[str, typer.Argument(help="Folder, CSV or hf:NAME.")]

# For looking at images before anything is trained.
Checked = Annotated[
    str | None,
    typer.Argument(help="Folder, CSV or hf:NAME (default: ./labeled, else the images of pretraining)."),
]
Full = Annotated[
    bool,
    _option("Decode all images: unreadable and flat ones, copies, contradicting labels.", "--full"),
]
Looking = Annotated[
    str | None,
    _option(
        "Run or artifact whose features are looked at, too: outliers, images that are alike, labels "
        "that look suspicious.",
        "--from",
        metavar="RUN|FILE",
    ),
]
LookingInit = Annotated[
    str | None,
    _option(
        "Pretrained weights whose features are looked at, where there is no run: imagenet, or a file.",
        "--init",
        metavar="WEIGHTS",
    ),
]
Fix = Annotated[
    Path | None,
    _option(
        "Write a list of the images without the problems; no other file is changed. Decodes as --full.",
        "--fix",
        metavar="OUT.csv",
    ),
]

# For choosing which images to label.
Chosen = Annotated[
    str | None,
    typer.Argument(
        help="Folder, CSV or hf:NAME (default: the images of the labels so far, else of pretraining)."
    ),
]
Budget = Annotated[int | None, _option("Number of images to choose.", least=1)]
TestSample = Annotated[
    int | None,
    _option(
        "Number of images to draw at random, to test on: chosen ones are no fair test.",
        "--test",
        least=1,
    ),
]
SoFar = Annotated[
    str | None,
    _option(
        "List with the labels so far, such as an earlier to_label.csv: its rows stay as they are.",
        metavar="SO_FAR.csv",
    ),
]
Strategy = Annotated[
    str,
    _option(
        "How images are chosen: auto, herding (those that cover the others), typiclust (typical ones of "
        "clusters), uncertain (those that cover what the classifier of the labels so far is unsure of), "
        "or random.",
    ),
]
Find = Annotated[
    str | None, _option("Choose the images that are likeliest of this class.", metavar="CLASS")
]

# For the page to label in.
Classes = Annotated[
    str | None,
    _option("Names of the classes, separated by commas; others can be added in the page."),
]
LabelBudget = Annotated[
    int | None,
    _option("Most images to label, besides the test sample (default: as many as you like).", "--budget"),
]
LabelTest = Annotated[
    int | None,
    _option(
        "Number of images to draw at random, to test on, or 0 (default: 50, or a third of few images).",
        "--test",
        least=0,
    ),
]
Browser = Annotated[bool, typer.Option(help="Open the page in a browser.")]
Port = Annotated[
    int | None, typer.Option(min=1, max=65535, help="Port of the page (default: any that is free).")
]

# For prediction.
Images = Annotated[list[str], typer.Argument(help="Files, folders, patterns, or - for a list on stdin.")]
Top = Annotated[int, _option("Number of labels per row.", least=1)]
Accept = Annotated[
    str | None,
    _option(
        "Say of each row whether it may be accepted unseen so that this part of the accepted is right, "
        "such as 0.95, as far as the test images of fine-tuning show, or needs review.",
        metavar="ACCURACY",
    ),
]
MinPrecision = Annotated[
    list[str] | None,
    _option(
        "Call images CLASS only where so sure that this part of them should be right; may be repeated.",
        metavar="CLASS=PART",
    ),
]
MinRecall = Annotated[
    list[str] | None,
    _option(
        "Call images CLASS already where so sure that this part of the class should be found; may be "
        "repeated.",
        metavar="CLASS=PART",
    ),
]

# For an export.
Proven = Annotated[
    str | None,
    typer.Argument(
        help="Images to try the file on: folder, CSV or hf:NAME (default: those of fine-tuning)."
    ),
]
OnnxOut = Annotated[
    Path | None,
    _option("File to write (default: classifier.onnx in the run).", "--out", metavar="FILE.onnx"),
]
Int8 = Annotated[
    bool,
    _option(
        "Write a file with numbers of 8 bits, too, if it is faster on this machine and as right.",
        "--int8",
    ),
]

# For comparison.
Methods = Annotated[str, _option("Pretraining methods, separated by commas, or all.")]
Budgets = Annotated[
    str,
    _option("Label budgets, separated by commas: 1%, 40 (in all), 4/class, 40/random, all.", "--labels"),
]
Draws = Annotated[
    int, typer.Option(min=1, max=1000, help="Label samples per budget, the same for all methods.")
]
Seeds = Annotated[int, typer.Option(min=1, max=100, help="Pretraining runs per method.")]
MinutesEach = Annotated[
    float | None, _option("Minutes of pretraining per method (default: 10).", "--minutes", least=0.01)
]
EpochsEach = Annotated[
    Any,
    typer.Option(
        "--epochs",
        help="Epochs of pretraining per method; or a comparison with --minutes, to take the same steps "
        "again.",
        metavar="N|RUN",
        parser=_epochs,
    ),
]
CompareMode = Annotated[
    str, _option("Classifier to train: linear, knn or propagate on frozen features, or full.", "--mode")
]
