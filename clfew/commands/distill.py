"""`clfew distill`: the fine-tuned model teaches a student on the unlabelled images."""

import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clfew import console
from clfew.data.image_cache import Store, stored
from clfew.data.sources import open_source
from clfew.distillation.run import Asked, fewest_labels, lesson_of, result_of, teach
from clfew.distillation.student import Lesson
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
from clfew.models.metadata import About
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
    gone_on,
    new_run,
    read_config,
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
    """Teaches a student on unlabelled images; returns the run folder and the result.

    source: the unlabelled images; None takes those that were pretrained on. origin: the teacher, a run
    or artifact, None for the newest classifier. student: an encoder's name, or "same" for the teacher's,
    from where the teacher started. init, size: of a student with another encoder. epochs or minutes: the
    budget, for the student and the two that are compared with their teachers. temperature: SimCLRv2's.
    use_labels: labelled images are shown with their labels. keep: keep the student even where nothing
    says that it is better. adapt: as in `pretrain`, of a student that goes back to published weights.
    The result has `kept`, `verdict` (see `students.Verdict`), and the accuracies of `teacher` and
    `student` on the `test_images`, which decide nothing. Raises UserError; Stopped after a signal.
    """
    check_new(out)
    if adapt not in (LAYER, NETWORK):
        raise UsageError(f"--adapt {adapt} is not known.", f"choose {LAYER} or {NETWORK}.")
    set_threads(threads)
    artifact = find_artifact(origin, "finetune", "make a classifier first: clfew finetune --labels 1%")
    asked = Asked(
        source, str(artifact), student, init, size, epochs, minutes, batch, lr, temperature, use_labels,
        keep, adapt, seed, precision,
    )  # fmt: skip
    return _run(asked, choose_device(device)[0], out, None)


def resume(
    folder: Path, device: str = "auto", threads: int | None = None
) -> tuple[Path, dict[str, Any]]:
    """Goes on with a run that was stopped, on the device and threads it was started with unless others
    are named; returns what `distill` returns. Raises UserError."""
    with gone_on(folder, "distill") as config, stoppable(_resume_command(folder)):
        chosen = set_up_as_started(config, device, threads)
        asked = Asked(**config["arguments"])
        check_same_file(Path(asked.origin), config["teacher"], "the teacher")
        check_same_file(Path(asked.origin).with_name(LABELS), config["labels"], "the teacher's labels")
        return _run(asked, chosen, None, Run(folder))


def _run(
    asked: Asked, device: torch.device, out: Path | None, resumed: Run | None
) -> tuple[Path, dict[str, Any]]:
    precision, _ = choose_precision(device, asked.precision)
    artifact = Path(asked.origin)
    teacher = open_teacher(artifact)
    images = open_images(teacher, asked.source)
    if resumed is not None:
        check_unchanged(resumed.folder, read_config(resumed.folder), images.source.digest())
    base, has_seen_labels = base_of(teacher, images.source, device, asked.seed)
    can_compare = not has_seen_labels and fewest_labels(images) >= 2
    if not can_compare and not asked.keep:
        raise UserError(
            "Nothing could say whether the student is better than its teacher: "
            + (
                "the teacher is a student itself."
                if has_seen_labels
                else "some class has one label only."
            ),
            "label two images of every class, or take the student as it comes with --keep.",
        )
    begin, about, init = student_start(
        teacher, base, asked.student, asked.init, asked.size, images.source, device, asked.seed
    )
    store = stored(images.source, max(teacher.about.side, about.side))
    pool, test = usable(images, store)
    lesson = lesson_of(asked, teacher, images, base, begin, about, store, pool, device, precision)
    console.say(f"teacher    {artifact}: {teacher.about.mode}, {len(images.labelled)} labels")
    learned = f"{len(lesson.task.pool):,} to learn from"
    console.say(f"images     {learned}, {len(test):,} held out for testing")
    arguments = (asked, lesson, teacher, images, about, store, test, can_compare)
    if resumed is not None:
        return resumed.folder, _finish(*arguments, resumed, False)
    run = new_run("distill", out)
    with held(run.folder):
        where = None if asked.source is None else open_source(asked.source).spec
        kept = replace(asked, source=where, init=init, origin=str(artifact.resolve()))
        run.write_config(
            {
                "command": "distill", "command_line": command_line(), "source": images.source.spec,
                "digest": images.source.digest(), "teacher": digest_of(artifact),
                "labels": digest_of(teacher.run / LABELS), "device": str(device),
                "threads": torch.get_num_threads(), "arguments": asdict(kept),
            }
        )  # fmt: skip
        return run.folder, _finish(*arguments, run, True)


def _resume_command(folder: Path) -> str:
    return f"clfew distill --resume {shlex.quote(str(folder))}"


def _finish(
    asked: Asked, lesson: Lesson, teacher: Teacher, images: Images, about: About, store: Store,
    test: np.ndarray, can_compare: bool, run: Run, is_new: bool,
) -> dict[str, Any]:  # fmt: skip
    artifact, labels = from_here(Path(asked.origin)), (teacher.run / LABELS).read_bytes()
    pool = lesson.task.pool
    path = run.folder / "classifier.safetensors"
    with resumable(run, _resume_command(run.folder), is_new) as trainings:
        classifier, verdict, plan = teach(asked, lesson, teacher, images, can_compare, run, trainings)
        result = result_of(lesson, teacher, classifier, verdict, images.source, test, asked.keep)
        config = read_config(run.folder) | {
            "seed": asked.seed, "student": about.encoder, "temperature": asked.temperature,
            "use_labels": asked.use_labels, "images": len(pool), "plan": asdict(plan),
            "device": str(lesson.task.device), "precision": lesson.task.precision,
            "threads": torch.get_num_threads(),
        }  # fmt: skip
        run.write_config(config)
        run.write_bad_images(store.bad)
        if result["kept"]:
            epochs_done = plan.steps / plan.steps_per_epoch(len(pool))
            how = {"command": config.get("command_line", ""), "teacher": str(artifact.resolve()),
                   "epochs": epochs_done, "temperature": asked.temperature,
                   "use_labels": asked.use_labels,
                   **asdict(verdict)}  # fmt: skip
            data = {"source": images.source.spec, "images": len(pool)}
            about = replace(
                about, temperature=classifier.temperature, clfew_version=__version__,
                training={**teacher.about.training, "distill": how},
                data={**teacher.about.data, "distill": data},
            )  # fmt: skip
            seen = np.union1d(teacher.seen["pretraining"], store.digests[pool])
            write_bytes(run.folder / LABELS, labels)
            save_classifier(path, classifier, about, seen, teacher.seen["finetuning"])
        write_json(run.folder / "result.json", result)
    if not result["kept"]:
        console.say(f"not kept   {result['reason']}; the teacher stays what it was")
        console.next_command(f"clfew eval{from_option(artifact, 'finetune')}")
        return result
    console.say(f"kept       {result['reason']}")
    console.say(f"saved      {path}")
    if len(test):
        console.next_command(f"clfew eval{from_option(path, 'finetune')}")
    console.next_command(f"clfew predict IMAGE{from_option(path, 'finetune')}")
    return result
