"""The command line. Each command parses its options, calls a function of `clfew.commands` and prints the
result. torch is imported only when a command needs it.
"""

import shlex
from typing import Annotated

import typer

from clfew import console
from clfew import options as opt
from clfew.data.image_files import expand
from clfew.errors import UsageError, UserError
from clfew.output import (
    describe_artifact,
    print_caches,
    print_comparison,
    print_distillation,
    print_finetuning,
    print_json,
    print_predictions,
    print_report,
    print_rows,
    print_settings,
)
from clfew.runs.folders import find_artifact
from clfew.version import __version__

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


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        console.write_out(f"clfew {__version__}\n")
        raise typer.Exit


@app.command(epilog="Example:  clfew pretrain ./unlabeled --minutes 10")
def pretrain(
    context: typer.Context,
    source: opt.Source = None,
    method: opt.Method = "simclr",
    encoder: opt.Encoder = "auto",
    init: opt.Init = "auto",
    size: opt.Size = None,
    epochs: opt.Epochs = None,
    minutes: opt.Minutes = None,
    batch: opt.Batch = None,
    optimizer: opt.Optimizer = "auto",
    lr: opt.Rate = None,
    temperature: opt.Temperature = None,
    loss: opt.Loss = None,
    corruption: opt.Corruption = None,
    stacked: opt.Stacked = None,
    mask: opt.Mask = None,
    adversarial: opt.Adversarial = None,
    flip: opt.Flip = True,
    transductive: opt.Transductive = False,
    adapt: opt.Adapt = "layer",
    save_samples: opt.SaveSamples = False,
    resume: opt.Resume = None,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
    precision: opt.Precision = "auto",
    compile: opt.Compile = "auto",
    threads: opt.Threads = None,
    out: opt.Out = None,
) -> None:
    """Learn an encoder from images without labels."""
    if resume is not None:
        opt.check_resumed(context, "pretrain", resume, {"device", "threads"})
        from clfew.commands.pretrain import resume as resume_run

        resume_run(resume, device, threads)
        return
    if source is None:
        raise UsageError("No SOURCE of images was named.", "for example: clfew pretrain ./unlabeled")
    from clfew.commands.pretrain import pretrain as run

    options = {
        "temperature": temperature,
        "loss": loss,
        "corruption": corruption,
        "stacked": stacked,
        "mask": mask,
        "adversarial": adversarial,
    }
    run(
        source,
        method=method,
        encoder=encoder,
        size=size,
        epochs=epochs,
        minutes=minutes,
        batch=batch,
        optimizer=optimizer,
        lr=lr,
        options=options,
        flip=flip,
        transductive=transductive,
        init=init,
        adapt=adapt,
        save_samples=save_samples,
        seed=seed,
        device=device,
        precision=precision,
        compilation=compile,
        threads=threads,
        out=out,
    )


@app.command(epilog="Example:  clfew finetune ./labeled --labels 4/class --repeat 5")
def finetune(
    context: typer.Context,
    labels: opt.Labels = None,
    source: opt.Labelled = None,
    origin: opt.From = None,
    init: opt.Init = "auto",
    mode: opt.Mode = "auto",
    stage: opt.Stage = 0,
    repeat: opt.Repeat = 1,
    encoder: opt.Encoder = "auto",
    size: opt.Size = None,
    epochs: opt.Epochs = None,
    batch: opt.Batch = None,
    lr: opt.Rate = None,
    flip: opt.SameFlip = None,
    resume: opt.Resume = None,
    output: opt.Output = opt.Format.table,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
    precision: opt.Precision = "auto",
    threads: opt.Threads = None,
    out: opt.Out = None,
) -> None:
    """Make a classifier from the newest encoder and a few labels.

    --from scratch trains the same network without pretraining, for comparison;
    --encoder and --size choose that network.
    """
    if resume is not None:
        opt.check_resumed(context, "finetune", resume, {"device", "threads", "output"})
        from clfew.commands.finetune import resume as resume_run

        folder, result = resume_run(resume, device, threads)
    else:
        if labels is None:
            raise UsageError(
                "The option --labels was not given.", "for example: clfew finetune --labels 1%"
            )
        from clfew.commands.finetune import finetune as run

        folder, result = run(
            source,
            labels=labels,
            origin=origin,
            init=init,
            mode=mode,
            stage=stage,
            repeat=repeat,
            encoder=encoder,
            size=size,
            epochs=epochs,
            batch=batch,
            lr=lr,
            flip=flip,
            seed=seed,
            device=device,
            precision=precision,
            threads=threads,
            out=out,
        )
    if output is opt.Format.json:
        print_json({"run": str(folder), **result})
    else:
        print_finetuning(result)


@app.command(epilog="Example:  clfew distill --minutes 5")
def distill(
    context: typer.Context,
    source: opt.Unlabelled = None,
    origin: opt.From = None,
    student: opt.Student = "same",
    init: opt.Init = "auto",
    size: opt.Size = None,
    epochs: opt.Epochs = None,
    minutes: opt.Minutes = None,
    batch: opt.Batch = None,
    lr: opt.Rate = None,
    temperature: opt.Softness = 1.0,
    use_labels: opt.UseLabels = True,
    keep: opt.Keep = False,
    adapt: opt.Adapt = "layer",
    resume: opt.Resume = None,
    output: opt.Output = opt.Format.table,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
    precision: opt.Precision = "auto",
    threads: opt.Threads = None,
    out: opt.Out = None,
) -> None:
    """Train a student on unlabelled images with the newest classifier as its teacher.

    The student is kept if it is better than the teacher.
    --student NAME --keep distils a large network into a small one.
    """
    if resume is not None:
        opt.check_resumed(context, "distill", resume, {"device", "threads", "output"})
        from clfew.commands.distill import resume as resume_run

        folder, result = resume_run(resume, device, threads)
    else:
        from clfew.commands.distill import distill as run

        folder, result = run(
            source,
            origin=origin,
            student=student,
            init=init,
            size=size,
            epochs=epochs,
            minutes=minutes,
            batch=batch,
            lr=lr,
            temperature=temperature,
            use_labels=use_labels,
            keep=keep,
            adapt=adapt,
            seed=seed,
            device=device,
            precision=precision,
            threads=threads,
            out=out,
        )
    if output is opt.Format.json:
        print_json({"run": str(folder), **result})
    else:
        print_distillation(result)


@app.command("eval", epilog="Example:  clfew eval ./test_images --format json")
def evaluate(
    source: opt.Tested = None,
    origin: opt.From = None,
    output: opt.Output = opt.Format.table,
    device: opt.Device = "auto",
    precision: opt.Precision = "auto",
    threads: opt.Threads = None,
    out: opt.Out = None,
) -> None:
    """Test a classifier: accuracy with its interval, results per class, calibration, report.html."""
    from clfew.commands.evaluate import evaluate as run

    _, report = run(source, origin=origin, device=device, precision=precision, threads=threads, out=out)
    if output is opt.Format.json:
        print_json(report)
    else:
        print_report(report)


@app.command(epilog="Example:  clfew predict photo.jpg folder/ 'more/*.png' --format csv > labels.csv")
def predict(
    images: opt.Images,
    origin: opt.From = None,
    output: opt.RowOutput = opt.RowFormat.table,
    top: opt.Top = 3,
    device: opt.Device = "auto",
    precision: opt.Precision = "auto",
    threads: opt.Threads = None,
) -> None:
    """Label images with the newest classifier."""
    # Checked before torch is imported, so that the commonest mistakes are reported at once.
    artifact = find_artifact(origin, "finetune", "make a classifier first: clfew finetune --labels 1%")
    paths = expand(images)
    from clfew.commands.predict import predict as run

    rows = run(paths, artifact, top=top, device=device, precision=precision, threads=threads)
    failed = print_predictions(rows, output.value)
    if failed:
        raise UserError(f"{failed} of the images could not be read.", "their rows give the reasons.")


@app.command(epilog="Example:  clfew embed ./photos --out features")
def embed(
    source: Annotated[str, typer.Argument(help="Folder, CSV or hf:NAME.")],
    origin: opt.From = None,
    init: opt.Init = "auto",
    encoder: opt.Encoder = "auto",
    size: opt.Size = None,
    stage: opt.Stage = 0,
    device: opt.Device = "auto",
    precision: opt.Precision = "auto",
    threads: opt.Threads = None,
    out: opt.Out = None,
) -> None:
    """Write the features and the path of every image."""
    from clfew.commands.embed import embed as run

    folder, count, dim = run(
        source,
        origin=origin,
        init=init,
        encoder=encoder,
        size=size,
        stage=stage,
        device=device,
        precision=precision,
        threads=threads,
        out=out,
    )
    console.write_out(f"{folder / 'features.safetensors'}  {count:,} × {dim} float32\n")
    console.write_out(f"{folder / 'paths.csv'}  the paths of the images in the same order\n")


@app.command(epilog="Example:  clfew compare ./photos --minutes 5")
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

    Three baselines are always included: raw pixels, a random encoder, and the same network from scratch.
    """
    if resume is not None:
        opt.check_resumed(context, "compare", resume, {"output"})
        from clfew.commands.compare import resume as resume_run

        folder, result = resume_run(resume)
    else:
        if source is None:
            raise UsageError("No SOURCE of images was named.", "for example: clfew compare ./photos")
        from clfew.commands.compare import compare as run

        folder, result = run(
            source,
            methods=methods,
            labels=labels,
            draws=draws,
            seeds=seeds,
            minutes=minutes,
            epochs=epochs,
            encoder=encoder,
            size=size,
            mode=mode,
            flip=flip,
            seed=seed,
            device=device,
            precision=precision,
            threads=threads,
            out=out,
        )
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


@app.command(epilog="Example:  clfew info runs/finetune-1")
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


@app.command(epilog="Example:  clfew cache --clear")
def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove all image caches.")] = False,
) -> None:
    """List the image caches (decoded images) with their sizes, or remove them."""
    from clfew.data.cache_listing import clear_image_caches, list_image_caches

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


@app.command(epilog="Example:  clfew demo --out demo")
def demo(
    out: opt.Out = None,
    minutes: Annotated[float, typer.Option(min=0.01, help="Minutes of pretraining.")] = 1.25,
    device: opt.Device = "auto",
    threads: opt.Threads = None,
) -> None:
    """Run the whole pipeline on the images that come with clfew, in a few minutes."""
    from clfew.commands.demo import run

    run(out, minutes=minutes, device=device, threads=threads)
