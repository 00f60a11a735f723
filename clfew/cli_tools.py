"""The commands beside the steps from images to predictions. Nothing here imports torch first."""

import shlex
from typing import Annotated

import typer

from clfew import console
from clfew import options as opt
from clfew.errors import UsageError, UserError
from clfew.printing import describe_artifact, print_json, print_rows, print_settings, print_stores


def compare(
    context: typer.Context,
    source: opt.Source = None,
    methods: opt.Methods = "all",
    labels: opt.Budgets = "1%,5%,10%",
    draws: opt.Draws = 5,
    seeds: opt.Seeds = 1,
    minutes: opt.MinutesEach = None,
    epochs: opt.EpochsEach = None,
    encoder: opt.Encoder = "auto",
    size: opt.Size = None,
    mode: opt.CompareMode = "linear",
    flip: opt.Flip = True,
    resume: opt.Resume = None,
    output: opt.RowOutput = opt.RowFormat.table,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
    precision: opt.Precision = "auto",
    threads: opt.Threads = None,
    out: opt.Out = None,
) -> None:
    """Compare pretraining methods on your images: same network, budget and labels for all.

    Always beside them: raw pixels, a random encoder, and the same network from scratch.
    """
    if resume is not None:
        opt.check_resumed(context, "compare", resume, {"output"})
        from clfew.compare import go_on

        folder, result = go_on(resume)
    else:
        if source is None:
            raise UsageError("Which images? No SOURCE was named.", "for example: clfew compare ./photos")
        from clfew.compare import compare as run

        folder, result = run(
            source, methods=methods, labels=labels, draws=draws, seeds=seeds, minutes=minutes,
            epochs=epochs, encoder=encoder, size=size, mode=mode, flip=flip, seed=seed, device=device,
            precision=precision, threads=threads, out=out,
        )  # fmt: skip
    if output is opt.RowFormat.table:
        from clfew.comparison_report import print_comparison

        print_comparison(result)
    elif output is opt.RowFormat.json:
        print_json(result)
    else:
        print_rows(result["rows"], output.value)
    if failed := result["failed"]:
        raise UserError(
            f"{' and '.join(failed)} could not be trained: {next(iter(failed.values()))}",
            f"all others are compared. To try again: clfew compare --resume {shlex.quote(str(folder))}",
        )


def info(
    artifact: Annotated[str, typer.Argument(help="An artifact or a run folder.", metavar="FILE|RUN")],
    output: opt.Output = opt.Format.table,
) -> None:
    """Say what an artifact is, without loading its weights."""
    description = describe_artifact(artifact)
    if output is opt.Format.json:
        print_json(description)
    else:
        print_settings(description)


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove all of them.")] = False,
) -> None:
    """List, size and clear the stores of decoded images."""
    from clfew.data.cache import clear_stores, list_stores

    stores = list_stores()
    total = f"{sum(store.bytes for store in stores) / 2**20:,.1f} MiB"
    if clear:
        if left := clear_stores():
            raise UserError(
                f"{left[0]} cannot be removed, nor can {len(left) - 1} other stores."
                if len(left) > 1
                else f"{left[0]} cannot be removed.",
                "check who owns it, or set CLFEW_CACHE to a folder of your own.",
            )
        console.write_out(f"removed {len(stores)} stores, {total}\n")
        return
    print_stores(stores)
    console.write_out(f"{len(stores)} stores, {total}\n")


def demo(
    out: opt.Out = None,
    minutes: Annotated[float, typer.Option(min=0.01, help="Time to pretrain for.")] = 1.25,
    device: opt.Device = "auto",
    threads: opt.Threads = None,
) -> None:
    """Run the whole pipeline on the images that come with clfew, in a few minutes."""
    from clfew.demo import run

    run(out, minutes=minutes, device=device, threads=threads)
