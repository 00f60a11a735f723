"""The command line. Each command parses its options, calls a function of `clfew.commands` and prints the
result. torch is imported only when a command needs it.
"""

import shlex
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperOption

from clfew import console
from clfew import options as opt
from clfew.data.image_files import expand
from clfew.errors import UsageError, UserError
from clfew.finetuning.asked import check_metric, parse_shares
from clfew.group.launch import is_helper, leave
from clfew.labelling.asked import check_labelling
from clfew.output import (
    describe_artifact,
    print_caches,
    print_check,
    print_comparison,
    print_distillation,
    print_export,
    print_finetuning,
    print_json,
    print_predictions,
    print_report,
    print_rows,
    print_selection,
    print_settings,
)
from clfew.runs.folders import find_artifact, is_finished, run_before_restart
from clfew.selection.asked import check_asked
from clfew.settings import (
    CheckSettings,
    CompareSettings,
    DistillSettings,
    EmbedSettings,
    EvaluateSettings,
    ExportSettings,
    FinetuneSettings,
    LabelSettings,
    PredictSettings,
    PretrainSettings,
    SelectSettings,
    check_exporting,
    labels_of,
    source_of,
)
from clfew.signatures import check_resumed, takes
from clfew.version import __version__

app = typer.Typer(
    name="clfew",
    help="Image classifiers from a folder of images and a few labels.",
    epilog="In one folder, in this order:  clfew pretrain ./unlabeled ·  clfew label ·  "
    "clfew predict image.jpg",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


TOGETHER = ("pretrain", "finetune", "distill", "eval", "predict", "embed", "select", "compare")
"""The commands that all processes work on that torchrun has started. Others run in the first one."""


class Command(TyperCommand):
    """A command that refuses --from given twice where it takes one, as `finetune` takes several. Of any
    other option the last one counts, as the shell's aliases need it."""

    def invoke(self, ctx: Any) -> Any:
        if self.name not in TOGETHER:
            leave()
            if is_helper():
                return None
        return super().invoke(ctx)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        for option, times in Counter(given).items():
            is_one = isinstance(option, TyperOption) and not option.multiple
            if times > 1 and is_one and "--from" in option.opts:
                raise UsageError(
                    f"--from was given {times} times but takes one run or file.",
                    "give one; only finetune compares several.",
                )
        return super().parse_args(ctx, args)


command = partial(app.command, cls=Command)


def run_to_go_on_with(command: str, out: Path | None) -> Path | None:
    """Returns the run that a restart by torchrun goes on with, if there is one. Ends the command if that
    has finished."""
    folder = run_before_restart(command, out)
    if folder is not None and is_finished(folder):
        from clfew.group.command import together

        together(lambda out: console.say(f"finished   {folder}, before the restart"))(out)
        raise typer.Exit
    return folder


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        console.write_out(f"clfew {__version__}\n")
        raise typer.Exit


@command(epilog="Example:  clfew pretrain ./unlabeled --minutes 10")
@takes(PretrainSettings)
def pretrain(context: typer.Context, settings: PretrainSettings, resume: opt.Resume = None) -> None:
    """Learn an encoder from images without labels."""
    if resume is not None:
        check_resumed(context, "pretrain", resume, {"source", "device", "threads"})
    if resume is not None or (resume := run_to_go_on_with("pretrain", settings.out)):
        from clfew.commands.pretrain import resume as resume_run

        resume_run(resume, settings.device, settings.threads, settings.source)
        return
    source_of(settings)  # Before torch is imported.
    from clfew.commands.pretrain import run

    run(settings)


@command(epilog="Example:  clfew finetune ./labeled --labels 4/class --repeat 5")
@takes(FinetuneSettings)
def finetune(
    context: typer.Context,
    settings: FinetuneSettings,
    resume: opt.Resume = None,
    output: opt.Output = opt.Format.table,
) -> None:
    """Make a classifier from the newest encoder and a few labels.

    --from scratch trains the same network without pretraining, for comparison;
    --encoder and --size choose that network.
    """
    if resume is not None:
        check_resumed(context, "finetune", resume, {"source", "device", "threads", "output"})
    if resume is not None or (resume := run_to_go_on_with("finetune", settings.out)):
        from clfew.commands.finetune import resume as resume_run

        folder, result = resume_run(resume, settings.device, settings.threads, settings.source)
    else:
        labels_of(settings)  # Before torch is imported.
        parse_shares(settings.shares)
        check_metric(settings.metric)
        from clfew.commands.finetune import run

        folder, result = run(settings)
    if output is opt.Format.json:
        print_json({"run": str(folder), **result})
    else:
        print_finetuning(result)


@command(epilog="Example:  clfew distill --minutes 5")
@takes(DistillSettings)
def distill(
    context: typer.Context,
    settings: DistillSettings,
    resume: opt.Resume = None,
    output: opt.Output = opt.Format.table,
) -> None:
    """Train a student on unlabelled images with the newest classifier as its teacher.

    The student is kept if it is better than the teacher.
    --student NAME --keep distils a large network into a small one.
    """
    if resume is not None:
        check_resumed(context, "distill", resume, {"source", "device", "threads", "output"})
    if resume is not None or (resume := run_to_go_on_with("distill", settings.out)):
        from clfew.commands.distill import resume as resume_run

        folder, result = resume_run(resume, settings.device, settings.threads, settings.source)
    else:
        from clfew.commands.distill import run

        folder, result = run(settings)
    if output is opt.Format.json:
        print_json({"run": str(folder), **result})
    else:
        print_distillation(result)


@command("eval", epilog="Example:  clfew eval ./test_images --format json")
@takes(EvaluateSettings)
def evaluate(
    context: typer.Context, settings: EvaluateSettings, output: opt.Output = opt.Format.table
) -> None:
    """Test a classifier: accuracy with its interval, results per class, calibration, report.html."""
    from clfew.commands.evaluate import run

    _, report = run(settings)
    if output is opt.Format.json:
        print_json(report)
    else:
        print_report(report)


@command(epilog="Example:  clfew predict photo.jpg folder/ 'more/*.png' --format csv > labels.csv")
@takes(PredictSettings)
def predict(
    context: typer.Context,
    settings: PredictSettings,
    output: opt.RowOutput = opt.RowFormat.table,
) -> None:
    """Label images with the newest classifier."""
    # Before torch is imported, so that the commonest mistakes are reported at once.
    hint = "make a classifier first: clfew finetune --labels 1%"
    artifact = find_artifact(settings.origin, "finetune", hint)
    paths = expand(settings.images)
    from clfew.commands.thresholds import check_predicting

    check_predicting(settings)
    from clfew.commands.predict import run

    rows = run(settings, artifact, paths)
    failed = print_predictions(rows, output.value, settings.accept is not None)
    if failed:
        raise UserError(f"{failed} of the images could not be read.", "their rows give the reasons.")


@command(epilog="Example:  clfew embed ./photos --out features")
@takes(EmbedSettings)
def embed(context: typer.Context, settings: EmbedSettings) -> None:
    """Write the features and the path of every image."""
    from clfew.commands.embed import run

    folder, count, dim = run(settings)
    console.write_out(f"{folder / 'features.safetensors'}  {count:,} × {dim} float32\n")
    console.write_out(f"{folder / 'paths.csv'}  the paths of the images in the same order\n")


@command(epilog="Example:  clfew check ./photos --full")
@takes(CheckSettings)
def check(
    context: typer.Context,
    settings: CheckSettings,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="Exit with 1 if something was found that somebody must decide on."
        ),
    ] = False,
    output: opt.Output = opt.Format.table,
) -> None:
    """Show what clfew sees in a folder before anything is trained: layout, classes, copies, mistakes."""
    from clfew.commands.check import run

    folder, result = run(settings)
    if output is opt.Format.json:
        print_json({"run": str(folder) if folder else None, **result})
    else:
        print_check(result)
    if strict and result["needs_person"]:
        raise UserError(
            f"Somebody has to decide on {result['needs_person']} of the findings.",
            f"{settings.fix} is a list without what can be left out."
            if settings.fix
            else "mend them, or write a list without them: "
            f"clfew check {shlex.quote(settings.source or result['source'])} --fix OUT.csv",
        )


@command(epilog="Example:  clfew select ./photos --budget 40 --test 50")
@takes(SelectSettings)
def select(
    context: typer.Context, settings: SelectSettings, output: opt.Output = opt.Format.table
) -> None:
    """Choose which images to label, and draw a random sample to test on."""
    check_asked(settings)  # Before torch is imported.
    from clfew.commands.select import run

    folder, result = run(settings)
    if output is opt.Format.json:
        print_json({"run": str(folder), **result})
    else:
        print_selection(result)


@command(epilog="Example:  clfew label ./photos --classes deer,fox")
@takes(LabelSettings)
def label(
    context: typer.Context, settings: LabelSettings, output: opt.Output = opt.Format.table
) -> None:
    """Label images in a page on this machine, with the classifier's help, and fine-tune on them.

    Stopped at any moment, it goes on where it was.
    """
    check_labelling(settings)  # Before torch is imported.
    from clfew.commands.label import run

    folder, result = run(settings)
    if output is opt.Format.json:
        print_json({"run": str(folder), **result})
    else:
        print_finetuning(result["finetune"])


@command(epilog="Example:  clfew export --out classifier.onnx")
@takes(ExportSettings)
def export(
    context: typer.Context, settings: ExportSettings, output: opt.Output = opt.Format.table
) -> None:
    """Write the newest classifier as one ONNX file that answers the same, without clfew.

    It is tried on 200 images first: if it does not answer as clfew does, there is no file.
    """
    # Before torch is imported.
    find_artifact(settings.origin, "finetune", "make a classifier first: clfew finetune --labels 1%")
    check_exporting(settings)
    from clfew.commands.thresholds import check_predicting

    check_predicting(settings)
    from clfew.commands.export import run

    result = run(settings)
    if output is opt.Format.json:
        print_json(result)
    else:
        print_export(result)


@command(epilog="Example:  clfew compare ./photos --minutes 5")
@takes(CompareSettings)
def compare(
    context: typer.Context,
    settings: CompareSettings,
    resume: opt.Resume = None,
    output: opt.RowOutput = opt.RowFormat.table,
) -> None:
    """Compare pretraining methods on your images: same network, budget and labels for all.

    Three baselines are always included: raw pixels, a random encoder, and the same network from scratch.
    """
    if resume is not None:
        check_resumed(context, "compare", resume, {"source", "output"})
    if resume is not None or (resume := run_to_go_on_with("compare", settings.out)):
        from clfew.commands.compare import resume as resume_run

        folder, result = resume_run(resume, settings.source)
    else:
        source_of(settings)  # Before torch is imported.
        from clfew.commands.compare import run

        folder, result = run(settings)
    if output is opt.RowFormat.table:
        print_comparison(result)
    elif output is opt.RowFormat.json:
        print_json(result)
    else:
        print_rows(result["rows"], output.value)
    if failed := result["failed"]:
        raise UserError(
            f"{' and '.join(failed)} could not be trained: {next(iter(failed.values()))}",
            f"the others were compared. To try again: clfew compare --resume {shlex.quote(str(folder))}",
        )


@command(epilog="Example:  clfew info runs/finetune-1")
def info(
    artifact: Annotated[str, typer.Argument(help="An artifact or a run folder.", metavar="FILE|RUN")],
    output: opt.Output = opt.Format.table,
) -> None:
    """Show the metadata of an artifact, without loading its weights."""
    description = describe_artifact(artifact)
    if output is opt.Format.json:
        print_json(description)
    else:
        print_settings(description)


@command(epilog="Example:  clfew cache --clear")
def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove all image caches.")] = False,
) -> None:
    """List the image caches (decoded images) with their sizes, or remove them."""
    from clfew.data.cache_listing import clear_image_caches, kept_features, list_image_caches

    caches = list_image_caches()
    total = f"{sum(each.bytes for each in caches) / 2**20:,.1f} MiB"
    if clear:
        if left := clear_image_caches():
            raise UserError(
                f"{left[0]} cannot be removed, nor can {len(left) - 1} other image caches."
                if len(left) > 1
                else f"{left[0]} cannot be removed.",
                "check who owns it, or set CLFEW_CACHE to a folder of your own.",
            )
        console.write_out(f"removed {len(caches)} image caches, {total}\n")
        return
    print_caches(caches)
    console.write_out(f"{len(caches)} image caches, {total}\n")
    count, size = kept_features()
    if count:
        console.write_out(
            f"and {console.plural(count, 'set')} of features for select, {size / 2**20:,.1f} MiB\n"
        )


@command(epilog="Example:  clfew demo --out demo")
def demo(
    out: opt.Out = None,
    minutes: Annotated[float, typer.Option(min=0.01, help="Minutes of pretraining.")] = 1.25,
    device: opt.Device = "auto",
    threads: opt.Threads = None,
) -> None:
    """Run the whole pipeline on the images that come with clfew, in a few minutes."""
    from clfew.commands.demo import run

    run(out, minutes=minutes, device=device, threads=threads)
