"""`clfew distill`: the fine-tuned model teaches a student on the unlabelled images."""

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import clfew
from clfew import console
from clfew.adapter import LAYER, NETWORK, views_to_teach_with
from clfew.artifacts import DISTILLED, About, save_classifier
from clfew.augment import Recipe
from clfew.calibration import believable, fit_temperature
from clfew.choices import choose_batch, choose_recipe
from clfew.classifier import Classifier
from clfew.data.sources import Source
from clfew.data.store import Store
from clfew.decoding import stored
from clfew.errors import UsageError, UserError
from clfew.features import features_of
from clfew.files import write_csv, write_json
from clfew.fitting import Start, Task, pool_logits, predict_store
from clfew.initial import AUTO, find_initial
from clfew.labelling import bounded
from clfew.origin import from_initial, from_scratch
from clfew.propagation import MAX_IMAGES
from clfew.runs import Run, check_new, command_line, find_artifact, from_option, new_run
from clfew.students import (
    Lesson,
    Verdict,
    build_student,
    cross_fit,
    lesson_data,
    soft_targets,
    train_student,
)
from clfew.teacher import Images, Teacher, base_of, open_images, open_teacher
from clfew.training.budget import Budget, plan_within
from clfew.training.device import choose_device, choose_precision, set_threads
from clfew.training.plan import Plan

DEFAULT_EPOCHS, DEFAULT_MINUTES = 20.0, 10.0
RATE, DECAY = 1e-3, 1e-4
SAME = "same"

TAUGHT_BY_LAYER = 8_000
"""Images whose views' features are computed before a layer learns from them."""


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
    chosen_device, _ = choose_device(device)
    chosen_precision, _ = choose_precision(chosen_device, precision)
    artifact = find_artifact(origin, "finetune", "make a classifier first: clfew finetune --labels 1%")
    teacher = open_teacher(artifact)
    images = open_images(teacher, source)
    base, has_seen_labels = base_of(teacher, images.source, chosen_device, seed)
    can_compare = not has_seen_labels and _fewest(images) >= 2
    if not can_compare and not keep:
        raise UserError(
            "Nothing could say whether the student is better than its teacher: "
            + (
                "the teacher is a student itself."
                if has_seen_labels
                else "some class has one label only."
            ),
            "label two images of every class, or take the student as it comes with --keep.",
        )
    begin, about = _student_start(teacher, base, student, init, size, images.source, chosen_device, seed)
    store = stored(images.source, max(teacher.about.side, about.side))
    by_layer = begin.is_published and adapt == LAYER
    pool, test = _usable(images, store)
    pool = bounded(pool, images.labelled, TAUGHT_BY_LAYER if by_layer else MAX_IMAGES)
    features = None
    if teacher.about.mode != "full":
        arrays = (store.pixels, store.aspects, pool)
        features = features_of(base.encoder, *arrays, chosen_device, chosen_precision)
    task = Task(
        store.pixels, store.aspects, pool, images.labels, len(about.classes), features, chosen_device,
        chosen_precision,
    )  # fmt: skip
    strong, _ = choose_recipe(min(about.size, store.side), store, pool, about.flip)
    views = None
    if by_layer:
        views = views_to_teach_with(
            begin.encoder, store, pool, strong, seed, chosen_device, chosen_precision
        )
    lesson = Lesson(
        base, teacher.about.mode, teacher.about.temperature, begin, task, _prior(images, about),
        Recipe(crop_area=0.5, flip=about.flip, jitter=0, grey=0, blur=0), strong, temperature,
        use_labels,
        views,
    )  # fmt: skip
    console.say(
        f"teacher    {artifact}: {teacher.about.mode}, {len(images.labelled)} labels\n"
        f"images     {len(pool):,} to learn from, {len(test):,} held out for testing"
    )
    run = new_run("distill", out)
    try:
        classifier, verdict, plan = _teach(
            lesson, teacher, images, seed, lr, batch,
            Budget(epochs, minutes, DEFAULT_EPOCHS, DEFAULT_MINUTES),
            can_compare, run,
        )  # fmt: skip
        result = _result(lesson, teacher, classifier, verdict, images.source, test, keep)
    except BaseException:
        shutil.rmtree(run.folder, ignore_errors=True)  # It holds nothing that could be gone on with.
        raise
    config = {
        "command": "distill", "from": str(artifact), "source": images.source.spec, "seed": seed,
        "student": about.encoder, "temperature": temperature, "use_labels": use_labels,
        "images": len(pool), "plan": asdict(plan), "device": str(chosen_device),
        "precision": chosen_precision, "threads": torch.get_num_threads(),
    }  # fmt: skip
    run.write_config(config)
    write_json(run.folder / "result.json", result)
    if store.bad:
        write_csv(run.folder / "bad_images.csv", ["path", "reason"], store.bad)
    if not result["kept"]:
        console.say(f"not kept   {result['reason']}; the teacher stays what it was")
        console.next_command(f"clfew eval{from_option(artifact, 'finetune')}")
        return run.folder, result
    epochs_done = plan.steps / plan.steps_per_epoch(len(pool))
    how = {"command": command_line(), "teacher": str(artifact), "epochs": epochs_done,
           "temperature": temperature, "use_labels": use_labels, **asdict(verdict)}  # fmt: skip
    about = replace(
        about, temperature=classifier.temperature, clfew_version=clfew.__version__,
        training={**teacher.about.training, "distill": how},
        data={**teacher.about.data, "distill": {"source": images.source.spec, "images": len(pool)}},
    )  # fmt: skip
    path = run.folder / "classifier.safetensors"
    seen = np.union1d(teacher.seen["pretraining"], store.digests[pool])
    save_classifier(path, classifier, about, seen, teacher.seen["finetuning"])
    shutil.copyfile(teacher.run / "labels.csv", run.folder / "labels.csv")
    console.say(f"kept       {result['reason']}")
    console.say(f"saved      {path}")
    if len(test):
        console.next_command(f"clfew eval{from_option(path, 'finetune')}")
    console.next_command(f"clfew predict IMAGE{from_option(path, 'finetune')}")
    return run.folder, result


def _student_start(
    teacher: Teacher, base: Start, name: str, init: str, size: int | None, source: Source,
    device: torch.device, seed: int,
) -> tuple[Start, About]:  # fmt: skip
    """What a student starts from, and the description of the classifier it will be."""
    about = teacher.about
    if name in (SAME, about.encoder) and size in (None, about.size) and init == AUTO:
        return base, replace(about, mode=DISTILLED, neck=0, dim=base.encoder.dim)
    encoder = about.encoder if name == SAME else name
    initial, why = find_initial(init, encoder, device)
    origin = (
        from_initial(source, initial, size, about.flip, device)
        if initial
        else from_scratch(
            source, None, encoder, size, about.flip, device, seed, about.data["finetune"]["split_seed"]
        )
    )
    console.say(f"student    {encoder} from {initial.what if initial else 'scratch'} ({why})")
    return origin.start, replace(
        origin.about,
        kind="classifier",
        classes=about.classes,
        mode=DISTILLED,
        neck=0,
        method=about.method,
    )


def _usable(images: Images, store: Store) -> tuple[np.ndarray, np.ndarray]:
    """The pool to learn from, without copies of what is tested on; and the test images that have
    labels.
    """
    held_out = np.intersect1d(images.held_out, store.good)
    # A copy of an image that was learned from, among other images, tests nothing.
    held_out = held_out[~np.isin(store.digests[held_out], store.digests[images.labelled])]
    pool = np.setdiff1d(store.good, held_out)
    pool = pool[~np.isin(store.digests[pool], store.digests[held_out])]
    lost = np.setdiff1d(images.labelled, pool)
    if len(lost):
        raise UserError(
            f"The labelled image {images.source.identities[lost[0]]} cannot be used any more.",
            "is it damaged? Fine-tune again, then distill.",
        )
    test = held_out[images.source.labels[held_out] >= 0]
    return pool, test


def _fewest(images: Images) -> int:
    """Labels of the class that has the fewest."""
    return int(np.unique(images.labels[images.labelled], return_counts=True)[1].min())


def _prior(images: Images, about: About) -> np.ndarray:
    """The shares of the classes among the labels, each counted once more than it occurs."""
    counts = np.bincount(images.labels[images.labelled], minlength=len(about.classes)) + 1.0
    return counts / counts.sum()


def _teach(
    lesson: Lesson, teacher: Teacher, images: Images, seed: int, lr: float | None, batch: int | None,
    budget: Budget, can_compare: bool, run: Run,
) -> tuple[Classifier, Verdict, Plan]:  # fmt: skip
    """The student of all labels, and what two of half of them say. The budget is for all three."""
    task, labelled = lesson.task, images.labelled
    students = 3 if can_compare else 1
    objective = build_student(lesson, soft_targets(lesson, teacher.classifier, labelled), seed)
    data = lesson_data(lesson, labelled)
    resolved_batch, _ = choose_batch(batch, len(data), task.device, lesson.views is not None)
    each = replace(
        budget,
        minutes=None if budget.minutes is None else budget.minutes / students,
        default_minutes=budget.default_minutes / students,
    )
    plan = plan_within(
        each, objective, data, task.device, batch=resolved_batch,
        choose_optimizer=lambda steps: ("adamw", RATE, DECAY, "for a network that starts near its goal"),
        lr=lr, seed=seed, precision=task.precision, compilation="off",
    )  # fmt: skip
    with console.progress_bar("distill") as update:

        def log(row: dict[str, float]) -> None:
            run.log(row)
            update(row["step"], plan.steps, f"loss {row['loss']:.3f}  {row['confident']:.0%} confident")

        student = train_student(lesson, objective, data, plan, log)
    if students == 1:
        return student, Verdict(0, 0, 0, 0, 0.0, 0.0, 0), plan
    with console.progress_bar("compare") as update:
        verdict = cross_fit(lesson, labelled, plan, seed, update)
    student.temperature = fit_temperature(
        pool_logits(student, task, False), believable(verdict.student_hits, verdict.held_out)
    )
    return student, verdict, plan


def _result(
    lesson: Lesson, teacher: Teacher, student: Classifier, verdict: Verdict, source: Source,
    test: np.ndarray, keep: bool,
) -> dict[str, Any]:  # fmt: skip
    """The verdict in words and numbers; the test accuracies stand beside it and decide nothing."""
    accuracies: dict[str, float | None] = {"teacher": None, "student": None}
    if len(test):
        for name, model in (("teacher", teacher.classifier), ("student", student)):
            hits = predict_store(model, lesson.task, test).argmax(1) == source.labels[test]
            accuracies[name] = float(hits.mean())
    if not verdict.held_out:
        reason = "no label could be held out to say whether the student is better"
    else:
        reason = (
            f"of {verdict.held_out} held-out labels the students got {verdict.student_hits} right, "
            f"their teachers {verdict.teacher_hits}; on other images two students agree in "
            f"{verdict.student_agreement:.0%}, two teachers in {verdict.teacher_agreement:.0%}"
        )
    if keep and not verdict.is_better:
        reason += "; --keep was given"
    return {
        "kept": keep or verdict.is_better, "reason": reason, "verdict": asdict(verdict), **accuracies,
        "test_images": len(test),
    }  # fmt: skip
