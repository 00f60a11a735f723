"""The commands: parse, call, print. Nothing here imports torch before a command needs it."""

import json
import os
import signal
import sys
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NoReturn, Optional

import typer

from clfew import __version__, console
from clfew.errors import Stopped, UsageError, UserError

app = typer.Typer(
    name="clfew",
    help="Image classifiers from a folder of images and a few labels.",
    epilog="In one folder, in this order:  clfew pretrain ./unlabeled ·  clfew finetune --labels 1% ·  "
    "clfew predict image.jpg",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Format(str, Enum):
    table = "table"
    json = "json"


class RowFormat(str, Enum):
    table = "table"
    json = "json"
    jsonl = "jsonl"
    csv = "csv"


# Options that mean the same in every command. Optional[] rather than | None: typer reads these at
# run time, on Python 3.10 too.
Out = Annotated[Optional[Path], typer.Option(help="Folder to write; must not exist yet.")]
From = Annotated[
    Optional[str], typer.Option("--from", help="Run or artifact to work from.", metavar="RUN|FILE")
]
Seed = Annotated[int, typer.Option(help="Seed of every random choice.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")]
Precision = Annotated[str, typer.Option(help="auto, bf16 or fp32.")]
Threads = Annotated[Optional[int], typer.Option(min=1, help="CPU threads. (default: all cores)")]
Encoder = Annotated[
    str, typer.Option(help="auto, resnet8-w32 and the like, or any torchvision network.")
]
Size = Annotated[
    Optional[int], typer.Option(min=8, max=1024, help="Side of the images in pixels. (default: auto)")
]
Batch = Annotated[Optional[int], typer.Option(min=2, help="Images a step. (default: auto)")]
Epochs = Annotated[Optional[float], typer.Option(min=1e-9, help="Passes over the images.")]
Rate = Annotated[
    Optional[float], typer.Option("--lr", min=1e-9, help="Peak learning rate. (default: auto)")
]


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        console.write_out(f"clfew {__version__}\n")
        raise typer.Exit


@app.command(epilog="Example:  clfew pretrain ./unlabeled --minutes 10")
def pretrain(
    source: Annotated[Optional[str], typer.Argument(help="Folder, CSV or hf:NAME.", show_default=False)] = None,
    method: Annotated[str, typer.Option(help="Self-supervised method: simclr.")] = "simclr",
    encoder: Encoder = "auto",
    size: Size = None,
    epochs: Epochs = None,
    minutes: Annotated[Optional[float], typer.Option(min=0.01, help="Time to train for. (default: 10 at most)")] = None,
    batch: Batch = None,
    optimizer: Annotated[str, typer.Option(help="auto, lars, sgd or adamw.")] = "auto",
    lr: Rate = None,
    temperature: Annotated[float, typer.Option(min=0.01, help="Of the contrastive loss.")] = 0.2,
    loss: Annotated[str, typer.Option(help="nt-xent or dcl (decoupled, for small batches).")] = "nt-xent",
    flip: Annotated[bool, typer.Option("--flip/--no-flip", help="--no-flip where mirror images differ.")] = True,
    transductive: Annotated[bool, typer.Option("--transductive", help="Learn from the test split's images too.")] = False,
    resume: Annotated[Optional[Path], typer.Option(help="Go on with an interrupted run.", metavar="RUN")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Threads = None,
    out: Out = None,
) -> None:  # fmt: skip
    """Learn an encoder from images without labels."""
    if resume is not None:
        if source is not None:
            raise UsageError(
                "--resume takes its images from the run.", f"clfew pretrain --resume {resume}"
            )
        from clfew.pretrain import resume as resume_run

        resume_run(resume, device, threads)
        return
    if source is None:
        raise UsageError("Which images? No SOURCE was named.", "for example: clfew pretrain ./unlabeled")
    from clfew.pretrain import pretrain as run

    run(
        source, method=method, encoder=encoder, size=size, epochs=epochs, minutes=minutes, batch=batch,
        optimizer=optimizer, lr=lr, temperature=temperature, loss=loss, flip=flip,
        transductive=transductive, seed=seed, device=device, precision=precision, threads=threads, out=out,
    )  # fmt: skip


@app.command(epilog="Example:  clfew finetune ./labeled --labels 4/class --repeat 5")
def finetune(
    labels: Annotated[str, typer.Option(help="1%, 40 (in all), 4/class, all, or a CSV of path,label.", metavar="SPEC")],
    source: Annotated[Optional[str], typer.Argument(help="Labelled images: folder, CSV or hf:NAME. (default: ./labeled, else what was pretrained on)", show_default=False)] = None,
    origin: From = None,
    mode: Annotated[str, typer.Option(help="auto, full, linear, knn or propagate.")] = "auto",
    repeat: Annotated[int, typer.Option(min=1, max=1000, help="Number of label draws.")] = 1,
    encoder: Encoder = "auto",
    size: Size = None,
    epochs: Epochs = None,
    batch: Batch = None,
    lr: Rate = None,
    flip: Annotated[Optional[bool], typer.Option("--flip/--no-flip", help="(default: as pretrained)", show_default=False)] = None,
    output: Annotated[Format, typer.Option("--format", help="Of the result on stdout.")] = Format.table,
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Threads = None,
    out: Out = None,
) -> None:  # fmt: skip
    """Make a classifier from the newest encoder and a few labels.

    --from scratch trains the same network without pretraining, for comparison.
    """
    from clfew.finetune import finetune as run

    folder, result = run(
        source, labels=labels, origin=origin, mode=mode, repeat=repeat, encoder=encoder, size=size,
        epochs=epochs, batch=batch, lr=lr, flip=flip, seed=seed, device=device, precision=precision,
        threads=threads, out=out,
    )  # fmt: skip
    if output is Format.json:
        _print_json({"run": str(folder), **result})
        return
    shown = [
        (f"seed {draw['seed']}", draw["labels"], draw["mode"], _percent(draw["accuracy"]))
        for draw in result["draws"]
    ]
    console.print_table(("draw", "labels", "mode", "accuracy"), shown)
    if "mean" in result:
        low, high = result["ci95"]
        spread = f" ± {100 * result['std']:.1f} over {repeat} draws" if repeat > 1 else ""
        console.write_out(
            f"accuracy {_percent(result['mean'])}{spread}, 95 % interval {_percent(low)} to "
            f"{_percent(high)}, on {result['test_images']:,} test images\n"
        )
    else:
        console.write_out("no labelled images were left to test on\n")


@app.command("eval", epilog="Example:  clfew eval ./test_images --format json")
def evaluate(
    source: Annotated[Optional[str], typer.Argument(help="Labelled images. (default: the test split of what was fine-tuned on)", show_default=False)] = None,
    origin: From = None,
    output: Annotated[Format, typer.Option("--format", help="Of the result on stdout.")] = Format.table,
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Threads = None,
    out: Out = None,
) -> None:  # fmt: skip
    """Test a classifier: accuracy with its interval, per class, calibration, and report.html."""
    from clfew.evaluate import evaluate as run

    _, report = run(source, origin=origin, device=device, precision=precision, threads=threads, out=out)
    if output is Format.json:
        _print_json(report)
        return
    low, high = report["ci95"]
    rows = [
        (c["class"], c["n"], _percent(c["precision"]), _percent(c["recall"]))
        for c in report["per_class"]
    ]
    console.print_table(("class", "images", "precision", "recall"), rows)
    for pair in report["most_confused"][:5]:
        console.write_out(
            f"{pair['count']:>5} × {console.printable(pair['true'])} taken for "
            f"{console.printable(pair['predicted'])}\n"
        )
    console.write_out(
        f"accuracy {_percent(report['accuracy'])} (95 % interval {_percent(low)} to {_percent(high)}, "
        f"{report['n']:,} images), balanced {_percent(report['balanced_accuracy'])}, "
        f"calibration error {_percent(report['ece'])}\n"
    )
    for step in ("pretraining", "finetuning"):
        if report[f"seen_in_{step}"]:
            console.write_out(f"{report[f'seen_in_{step}']:,} of these images were seen in {step}\n")


@app.command(epilog="Example:  clfew predict photo.jpg folder/ 'more/*.png' --format csv > labels.csv")
def predict(
    images: Annotated[list[str], typer.Argument(help="Files, folders, patterns, or - for a list on stdin.")],
    origin: From = None,
    output: Annotated[RowFormat, typer.Option("--format", help="Of the rows on stdout.")] = RowFormat.table,
    top: Annotated[int, typer.Option(min=1, help="Number of labels a row.")] = 3,
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Threads = None,
) -> None:  # fmt: skip
    """Label images with the newest classifier."""
    from clfew.runs import find_artifact

    artifact = find_artifact(origin, "finetune", "make a classifier first: clfew finetune --labels 1%")
    from clfew.predict import expand
    from clfew.predict import predict as run

    rows = run(expand(images), artifact, top=top, device=device, precision=precision, threads=threads)
    from clfew.printing import print_predictions

    failed = print_predictions(rows, output.value)
    if failed:
        raise UserError(f"{failed} images could not be read.", "their rows say why.")


@app.command(epilog="Example:  clfew embed ./photos --out features")
def embed(
    source: Annotated[str, typer.Argument(help="Folder, CSV or hf:NAME.")],
    origin: From = None,
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Threads = None,
    out: Out = None,
) -> None:
    """Write the features of every image, with their paths."""
    from clfew.embed import embed as run

    folder, count, dim = run(
        source, origin=origin, device=device, precision=precision, threads=threads, out=out
    )
    console.write_out(f"{folder / 'features.safetensors'}  {count:,} × {dim} float32\n")
    console.write_out(f"{folder / 'paths.csv'}  the images in the same order\n")


@app.command(epilog="Example:  clfew info runs/finetune-1")
def info(
    artifact: Annotated[str, typer.Argument(help="An artifact or a run folder.", metavar="FILE|RUN")],
    output: Annotated[Format, typer.Option("--format", help="Of the result on stdout.")] = Format.table,
) -> None:
    """Say what an artifact is, without loading its weights."""
    from clfew.printing import describe_artifact

    description = describe_artifact(artifact)
    if output is Format.json:
        _print_json(description)
    else:
        console.print_table(("field", "value"), list(_flat(description)), right_align=False)


@app.command(epilog="Example:  clfew cache --clear")
def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove all of them.")] = False,
) -> None:
    """List, size and clear the stores of decoded images."""
    from clfew.data.cache import clear_stores, list_stores

    stores = list_stores()
    if clear:
        clear_stores()
        console.write_out(
            f"removed {len(stores)} stores, {sum(s.bytes for s in stores) / 2**20:,.1f} MiB\n"
        )
        return
    rows = [
        (s.source, f"{s.images:,}", f"{s.side} px", f"{s.bytes / 2**20:,.1f} MiB", s.used)
        for s in stores
    ]
    console.print_table(("source", "images", "side", "size", "last used"), rows)


@app.command(epilog="Example:  clfew demo --out demo")
def demo(
    out: Out = None,
    minutes: Annotated[float, typer.Option(min=0.01, help="Time to pretrain for.")] = 1.75,
    device: Device = "auto",
    threads: Threads = None,
) -> None:
    """Run the whole pipeline on the images that come with clfew, in a few minutes."""
    from clfew.demo import demo as run

    run(out, minutes=minutes, device=device, threads=threads)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _print_json(value: Any) -> None:
    console.write_out(json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def _flat(value: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Nested settings as (dotted name, text) rows."""
    for name, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield from _flat(inner, f"{prefix}{name}.")
        else:
            text = ", ".join(map(str, inner)) if isinstance(inner, (list, tuple)) else str(inner)
            yield f"{prefix}{name}", text


def main() -> NoReturn:
    """The `clfew` command. Exit codes: 0 done, 1 the user can mend it, 2 wrong usage, 128 + signal."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        app()
    except UserError as error:
        console.show_error(error)
        sys.exit(error.exit_code)
    except Stopped as stopped:
        if stopped.resume:
            console.say("stopped; the state is saved. To go on:")
            console.next_command(stopped.resume)
        sys.exit(128 + stopped.signal)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # Whoever read our output has gone, as in `clfew predict … | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except (RuntimeError, ImportError) as error:
        if "torchvision" not in str(error):
            raise
        mismatch = UserError(
            f"torch and torchvision do not fit together ({str(error).splitlines()[0]}).",
            "install both from the same place: pip install --force-reinstall torch torchvision",
        )
        console.show_error(mismatch)
        sys.exit(1)
    sys.exit(0)


if __name__ == "__main__":
    main()
