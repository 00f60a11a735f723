"""`clfew distill`: trains a student on unlabelled images with a classifier as its teacher."""

import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clfew import console
from clfew.data.image_cache import ImageCache, cached_images
from clfew.data.sources import open_source
from clfew.distillation.run import Settings, build_setup, fewest_labels, result_of, teach
from clfew.distillation.student import DistillationSetup
from clfew.distillation.teacher import (
    SAME,
    Images,
    Teacher,
    base_of,
    open_images,
    open_teacher,
    student_start,
    usable,
)
from clfew.errors import UsageError, UserError
from clfew.methods.adapter import LAYER, NETWORK
from clfew.models.artifacts import save_classifier
from clfew.models.init_weights import AUTO
from clfew.models.metadata import ArtifactMetadata
from clfew.runs.files import digest_of, write_bytes, write_json
from clfew.runs.folders import (
    LABELS,
    Run,
    check_new,
    check_same_file,
    check_unchanged,
    command_line,
    find_artifact,
    from_here,
    from_option,
    new_run,
    read_config,
    resumed_run,
)
from clfew.runs.locks import held
from clfew.training.device import choose_device, choose_precision, set_threads, set_up_as_started
from clfew.training.saving import resumable, stoppable
from clfew.version import __version__


def distill(
    source: str | None = None,
    *,
    origin: str | None = None,
    student: str = SAME,
    init: str = AUTO,
    size: int | None = None,
    epochs: float | None = None,
    minutes: float | None = None,
    batch: int | None = None,
    lr: float | None = None,
    temperature: float = 1.0,
    use_labels: bool = True,
    keep: bool = False,
    adapt: str = LAYER,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    out: Path | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Distils a teacher into a student on unlabelled images; returns the run folder and the result.

    source: the unlabelled images, None for the images of pretraining. origin: the teacher, a run or
    artifact, None for the newest classifier. student: the name of an encoder, or "same" for the
    teacher's encoder with the weights that the teacher started from. init, size: weights and input size
    of a student with another encoder. epochs or minutes: the budget, for the student and for the two
    students that are compared with their teachers. temperature: the temperature of SimCLRv2's loss.
    use_labels: whether labelled images have their labels as targets. keep: keep the student even if it
    is not shown to be better. adapt: as in `pretrain`, for a student that starts from pretrained
    weights. The result has `kept`, `verdict` (see `clfew.distillation.student.Verdict`), and the
    accuracies of `teacher` and `student` on the `test_images`, which do not influence `kept`. Raises
    UserError; raises Stopped after a signal.
    """
    check_new(out)
    if adapt not in (LAYER, NETWORK):
        raise UsageError(f"--adapt {adapt} is not known.", f"choose {LAYER} or {NETWORK}.")
    set_threads(threads)
    artifact = find_artifact(origin, "finetune", "make a classifier first: clfew finetune --labels 1%")
    settings = Settings(
        source,
        str(artifact),
        student,
        init,
        size,
        epochs,
        minutes,
        batch,
        lr,
        temperature,
        use_labels,
        keep,
        adapt,
        seed,
        precision,
    )
    return _run(settings, choose_device(device)[0], out, None)


def resume(
    folder: Path, device: str = "auto", threads: int | None = None
) -> tuple[Path, dict[str, Any]]:
    """Resumes a run that was stopped and returns what `distill` returns.

    It runs on the device and threads that it was started with unless others are given. Raises UserError.
    """
    with resumed_run(folder, "distill") as config, stoppable(_resume_command(folder)):
        chosen = set_up_as_started(config, device, threads)
        settings = Settings(**config["arguments"])
        check_same_file(Path(settings.origin), config["teacher"], "the teacher")
        check_same_file(
            Path(settings.origin).with_name(LABELS), config["labels"], "the teacher's labels"
        )
        return _run(settings, chosen, None, Run(folder))


def _run(
    settings: Settings, device: torch.device, out: Path | None, resumed: Run | None
) -> tuple[Path, dict[str, Any]]:
    precision, _ = choose_precision(device, settings.precision)
    artifact = Path(settings.origin)
    teacher = open_teacher(artifact)
    images = open_images(teacher, settings.source)
    if resumed is not None:
        check_unchanged(resumed.folder, read_config(resumed.folder), images.source.digest())
    base, has_seen_labels = base_of(teacher, images.source, device, settings.seed)
    can_compare = not has_seen_labels and fewest_labels(images) >= 2
    if not can_compare and not settings.keep:
        raise UserError(
            "The student cannot be compared with its teacher: "
            + (
                "the teacher is a student itself."
                if has_seen_labels
                else "some class has one label only."
            ),
            "label two images of every class, or keep the student without a comparison with --keep.",
        )
    start, metadata, init = student_start(
        teacher,
        base,
        settings.student,
        settings.init,
        settings.size,
        images.source,
        device,
        settings.seed,
    )
    cache = cached_images(images.source, max(teacher.metadata.side, metadata.side))
    pool, test = usable(images, cache)
    setup = build_setup(settings, teacher, images, base, start, metadata, cache, pool, device, precision)
    console.say(f"teacher    {artifact}: {teacher.metadata.mode}, {len(images.labelled)} labels")
    pool_count = len(setup.task.pool)
    console.say(f"images     {pool_count:,} to learn from, {len(test):,} held out for testing")
    arguments = (settings, setup, teacher, images, metadata, cache, test, can_compare)
    if resumed is not None:
        return resumed.folder, _finish(*arguments, resumed, False)
    run = new_run("distill", out)
    with held(run.folder):
        spec = None if settings.source is None else open_source(settings.source).spec
        resolved = replace(settings, source=spec, init=init, origin=str(artifact.resolve()))
        run.write_config(
            {
                "command": "distill",
                "command_line": command_line(),
                "source": images.source.spec,
                "digest": images.source.digest(),
                "teacher": digest_of(artifact),
                "labels": digest_of(teacher.run / LABELS),
                "device": str(device),
                "threads": torch.get_num_threads(),
                "arguments": asdict(resolved),
            }
        )
        return run.folder, _finish(*arguments, run, True)


def _resume_command(folder: Path) -> str:
    return f"clfew distill --resume {shlex.quote(str(folder))}"


def _finish(
    settings: Settings,
    setup: DistillationSetup,
    teacher: Teacher,
    images: Images,
    metadata: ArtifactMetadata,
    cache: ImageCache,
    test: np.ndarray,
    can_compare: bool,
    run: Run,
    is_new: bool,
) -> dict[str, Any]:
    artifact, labels = from_here(Path(settings.origin)), (teacher.run / LABELS).read_bytes()
    pool = setup.task.pool
    path = run.folder / "classifier.safetensors"
    with resumable(run, _resume_command(run.folder), is_new) as trainings:
        classifier, verdict, plan = teach(settings, setup, teacher, images, can_compare, run, trainings)
        result = result_of(setup, teacher, classifier, verdict, images.source, test, settings.keep)
        config = read_config(run.folder) | {
            "seed": settings.seed,
            "student": metadata.encoder,
            "temperature": settings.temperature,
            "use_labels": settings.use_labels,
            "images": len(pool),
            "plan": asdict(plan),
            "device": str(setup.task.device),
            "precision": setup.task.precision,
            "threads": torch.get_num_threads(),
        }
        run.write_config(config)
        run.write_bad_images(cache.bad)
        if result["kept"]:
            epochs_done = plan.steps / plan.steps_per_epoch(len(pool))
            how = {
                "command": config.get("command_line", ""),
                "teacher": str(artifact.resolve()),
                "epochs": epochs_done,
                "temperature": settings.temperature,
                "use_labels": settings.use_labels,
                **asdict(verdict),
            }
            data = {"source": images.source.spec, "images": len(pool)}
            metadata = replace(
                metadata,
                temperature=classifier.temperature,
                clfew_version=__version__,
                training={**teacher.metadata.training, "distill": how},
                data={**teacher.metadata.data, "distill": data},
            )
            seen = np.union1d(teacher.seen["pretraining"], cache.digests[pool])
            write_bytes(run.folder / LABELS, labels)
            save_classifier(path, classifier, metadata, seen, teacher.seen["finetuning"])
        write_json(run.folder / "result.json", result)
    if not result["kept"]:
        console.say(f"not kept   {result['reason']}; the teacher is unchanged")
        console.next_command(f"clfew eval{from_option(artifact, 'finetune')}")
        return result
    console.say(f"kept       {result['reason']}")
    console.say(f"saved      {path}")
    if len(test):
        console.next_command(f"clfew eval{from_option(path, 'finetune')}")
    console.next_command(f"clfew predict IMAGE{from_option(path, 'finetune')}")
    return result
