"""`clfew distill`: trains a student on unlabelled images with a classifier as its teacher."""

import shlex
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clfew import console
from clfew.data.content import check_content, content_of
from clfew.data.held_out import SPLIT_RULE
from clfew.data.image_cache import cached_images
from clfew.data.sources import open_source, say_source
from clfew.distillation.expected import expectation
from clfew.distillation.parts import Part, find_parts, restored_parts
from clfew.distillation.run import (
    Student,
    budget_of_students,
    build_setup,
    fewest_labels,
    result_of,
    teach,
)
from clfew.distillation.student import DistillationSetup, Verdict, encoder_rate, student_data
from clfew.distillation.teacher import (
    Images,
    Teacher,
    at_places,
    base_of,
    open_images,
    open_teacher,
    student_start,
    usable,
)
from clfew.errors import UsageError, UserError
from clfew.finetuning.evidence import evidence_of_labels, evidence_of_test
from clfew.finetuning.fit import predict_cached
from clfew.finetuning.labelled_data import LabelledData
from clfew.finetuning.other_sources import bad_in_merged
from clfew.finetuning.probes import folds
from clfew.group.command import together
from clfew.methods.adapter import LAYER, NETWORK
from clfew.models.artifacts import save_classifier
from clfew.models.classifier import Classifier
from clfew.report.card import write_card
from clfew.runs.files import digest_of, write_bytes, write_json
from clfew.runs.folders import (
    ARTIFACTS,
    LABELS,
    Run,
    check_new,
    check_same_file,
    command_line,
    find_artifact,
    from_here,
    from_option,
    new_run,
    read_config,
    resumed_run,
)
from clfew.runs.locks import held
from clfew.settings import DistillSettings, arguments_of
from clfew.signatures import function_of
from clfew.training.device import (
    choose_device,
    choose_precision,
    set_threads,
    set_up_as_started,
    without_traces,
)
from clfew.training.plan import Plan
from clfew.training.saving import resumable, stoppable
from clfew.version import __version__


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to train, new or resumed. parts: its sources. can_compare: whether labels can
    be held out to compare the student with its teacher."""

    settings: DistillSettings
    teacher: Teacher
    parts: list[Part]
    images: Images
    learned: LabelledData
    student: Student
    setup: DistillationSetup
    can_compare: bool


@together
def run(settings: DistillSettings) -> tuple[Path, dict[str, Any]]:
    """Distils a teacher into a student on unlabelled images; returns the run folder and the result.

    The result has `kept`, `verdict` (see `clfew.distillation.student.Verdict`), and the accuracies of
    `teacher` and `student` on the `test_images`, which do not influence `kept`. Raises UserError; raises
    Stopped after a signal.
    """
    settings, device = resolve(settings)
    prepared = prepare(settings, device)
    new = new_run("distill", settings.out)
    with held(new.folder):
        create(new, prepared)
        result = train_and_save(prepared, new, is_new=True)
    _say_next(prepared, new.folder, result)
    return new.folder, result


distill = function_of(DistillSettings, without_traces(run))


@together
def resume(
    folder: Path, device: str = "auto", threads: int | None = None, source: str | None = None
) -> tuple[Path, dict[str, Any]]:
    """Resumes a run that was stopped and returns what `distill` returns.

    It runs on the device and threads that it was started with unless others are given. source: where the
    images are now, the labelled or the unlabelled ones. Raises UserError.
    """
    with resumed_run(folder, "distill") as config, stoppable(_resume_command(folder)):
        chosen = set_up_as_started(config, device, threads)
        settings = DistillSettings(**config["arguments"])
        teacher = Path(settings.origin or "")
        check_same_file(teacher, config["teacher"], "the teacher")
        check_same_file(teacher.with_name(LABELS), config["labels"], "the teacher's labels")
        prepared = prepare(settings, chosen, folder, source)
        result = train_and_save(prepared, Run(folder), is_new=False)
    _say_next(prepared, folder, result)
    return folder, result


def resolve(settings: DistillSettings) -> tuple[DistillSettings, torch.device]:
    """Checks the settings and finds the teacher. Raises UserError."""
    check_new(settings.out)
    budget_of_students(settings)
    if settings.adapt not in (LAYER, NETWORK):
        raise UsageError(f"--adapt {settings.adapt} is not known.", f"choose {LAYER} or {NETWORK}.")
    set_threads(settings.threads)
    hint = "make a classifier first: clfew finetune --labels 1%"
    artifact = find_artifact(settings.origin, "finetune", hint)
    return replace(settings, origin=str(artifact)), choose_device(settings.device)[0]


def prepare(
    settings: DistillSettings,
    device: torch.device,
    resumed: Path | None = None,
    place: str | None = None,
) -> Prepared:
    """Opens the images and prepares what is trained. resumed: the folder of a run that is resumed, whose
    images must be those that it was started with. place: where they are now, None where they were.
    Raises UserError."""
    precision, _ = choose_precision(device, settings.precision)
    artifact = Path(settings.origin or "")
    teacher = open_teacher(artifact)
    parts = _parts(settings, teacher, resumed, place)
    teacher = at_places(teacher, parts)
    images = open_images(teacher, parts)
    say_source(images.source)
    if resumed is not None:
        check_content(resumed, read_config(resumed), images.source)
    base, has_seen_labels = base_of(teacher, images.source, device, settings.seed)
    can_compare = not has_seen_labels and fewest_labels(images) >= 2
    if not can_compare and not settings.keep:
        has_few = "some class has one label only."
        _refuse_to_compare("the teacher is a student itself." if has_seen_labels else has_few)
    before = read_config(resumed) if resumed else None
    start, metadata, init = student_start(teacher, base, settings, images.source, device)
    rate = encoder_rate(start, is_old=before is not None)
    student = Student(start, metadata, init, (before or {}).get("rate", rate))
    cache = cached_images(images.source, max(teacher.metadata.side, student.metadata.side))
    split_seed = teacher.metadata.data["finetune"]["split_seed"]
    rule = SPLIT_RULE if before is None else before.get("split_rule", 2)
    learned = usable(images, cache, split_seed, rule)
    if can_compare and not _has_halves(images, learned, settings.seed):
        can_compare = False
        if not settings.keep:
            _refuse_to_compare("all labelled images of some class belong together.")
    setup = build_setup(settings, teacher, images, base, student, learned, device, precision)
    if can_compare and not len(np.setdiff1d(setup.task.pool, images.labelled)):
        raise UserError(
            f"All {len(setup.task.pool)} images of {images.source.spec} outside its test split are "
            "labelled: a student has nothing to learn from.",
            "name unlabelled images: clfew distill ./unlabeled",
        )
    console.say(f"teacher    {artifact}: {teacher.metadata.mode}, {len(images.labelled)} labels")
    pool = f"{len(setup.task.pool):,}"
    console.say(f"images     {pool} to learn from, {len(learned.test):,} held out for testing")
    console.say(f"expected   {expectation(setup, can_compare, settings.keep)}")
    return Prepared(settings, teacher, parts, images, learned, student, setup, can_compare)


def _parts(
    settings: DistillSettings, teacher: Teacher, resumed: Path | None, place: str | None
) -> list[Part]:
    """Returns the sources of a run, new or resumed. Runs before they kept them find them again."""
    rows = read_config(resumed).get("parts") if resumed else None
    if resumed is None or rows is None:
        return find_parts(teacher.metadata, place or settings.source)
    return restored_parts(teacher.metadata, rows, place, _resume_command(resumed))


def _has_halves(images: Images, learned: LabelledData, seed: int) -> bool:
    """Returns whether half of the labels of each class can be held out, in whole groups."""
    groups = None if learned.groups is None else learned.groups[images.labelled]
    return bool(folds(images.labels[images.labelled], seed, 2, groups))


def _refuse_to_compare(reason: str) -> None:
    raise UserError(
        f"The student cannot be compared with its teacher: {reason}",
        "label two images of every class, or keep the student without a comparison with --keep.",
    )


def create(run: Run, prepared: Prepared) -> None:
    """Writes what a new run needs to be resumed."""
    settings, source = prepared.settings, prepared.images.source
    epochs = settings.epochs
    artifact = Path(settings.origin or "")
    resolved = replace(
        settings,
        source=None if settings.source is None else open_source(settings.source).spec,
        init=prepared.student.init,
        origin=str(artifact.resolve()),
        epochs=str(Path(epochs).resolve()) if isinstance(epochs, (str, Path)) else epochs,
    )
    run.write_config(
        {
            "command": "distill",
            "command_line": command_line(),
            "source": source.spec,
            "parts": [asdict(part) for part in prepared.parts],
            "digest": source.digest(),
            "content": content_of(source, prepared.learned.cache),
            "split_rule": prepared.learned.split_rule,
            "teacher": digest_of(artifact),
            "labels": digest_of(prepared.teacher.run / LABELS),
            "device": str(prepared.setup.task.device),
            "threads": torch.get_num_threads(),
            "rate": prepared.setup.rate,
            "arguments": arguments_of(resolved),
        }
    )


def _resume_command(folder: Path) -> str:
    return f"clfew distill --resume {shlex.quote(str(folder))}"


def train_and_save(prepared: Prepared, run: Run, is_new: bool) -> dict[str, Any]:
    """Trains the student and those that it is compared by, and saves it if it is kept."""
    settings, setup = prepared.settings, prepared.setup
    teacher, images = prepared.teacher, prepared.images
    labels = (teacher.run / LABELS).read_bytes()
    with resumable(run, _resume_command(run.folder), is_new) as trainings:
        classifier, verdict, plans, held_out = teach(
            settings, setup, teacher, images, prepared.can_compare, run, trainings
        )
        test = prepared.learned.test
        logits = predict_cached(classifier, setup.task, test) if len(test) else None
        result = result_of(setup, teacher, logits, verdict, images.source, test, settings.keep)
        config = read_config(run.folder) | {
            "source": images.source.spec,
            "parts": [asdict(part) for part in prepared.parts],
            "seed": settings.seed,
            "student": prepared.student.metadata.encoder,
            "temperature": settings.temperature,
            "use_labels": settings.use_labels,
            "images": len(setup.task.pool),
            "viewed": len(student_data(setup, images.labelled)),
            "plan": asdict(replace(plans[0], replanned=[])),
            "replanned": [plan.replanned for plan in plans],
            "device": str(setup.task.device),
            "precision": setup.task.precision,
            "threads": torch.get_num_threads(),
        }
        run.write_config(config)
        run.write_bad_images(bad_in_merged(prepared.learned.cache.bad, prepared.parts[-1].spec))
        if result["kept"]:
            write_bytes(run.folder / LABELS, labels)
            evidence = evidence_of(prepared, logits, held_out)
            _save(prepared, run, classifier, verdict, plans[0], evidence, result)
        write_json(run.folder / "result.json", result)
    return result


def evidence_of(
    prepared: Prepared, logits: np.ndarray | None, held_out: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Returns what the student's thresholds are chosen by (see `read_evidence`). logits: of the test
    images. held_out: see `teach`."""
    task, test = prepared.setup.task, prepared.learned.test
    origins = set(prepared.teacher.metadata.data["finetune"].get("test_origins", {}))
    found = evidence_of_test(task, logits, test, origins)
    return found | evidence_of_labels(task, prepared.images.labelled, held_out)


def _save(
    prepared: Prepared,
    run: Run,
    classifier: Classifier,
    verdict: Verdict,
    plan: Plan,
    evidence: dict[str, np.ndarray],
    result: dict[str, Any],
) -> None:
    """Writes the student's card and its artifact. plan: that was carried out."""
    settings, teacher, cache = prepared.settings, prepared.teacher, prepared.learned.cache
    pool = prepared.setup.task.pool
    training = {
        "command": read_config(run.folder).get("command_line", ""),
        "teacher": str(Path(settings.origin or "").resolve()),
        "init": prepared.student.init,
        "plan": asdict(plan),
        "epochs": plan.last_step() / plan.steps_per_epoch(read_config(run.folder)["viewed"]),
        "temperature": settings.temperature,
        "use_labels": settings.use_labels,
        **asdict(verdict),
    }
    data = {"source": prepared.images.source.spec, "images": len(pool)}
    metadata = replace(
        prepared.student.metadata,
        temperature=classifier.temperature,
        clfew_version=__version__,
        training={**teacher.metadata.training, "distill": training},
        data={**teacher.metadata.data, "distill": data},
    )
    seen = np.union1d(teacher.seen["pretraining"], cache.digests[pool])
    path = run.folder / ARTIFACTS["finetune"]
    write_card(run.folder, metadata, result)
    save_classifier(path, classifier, metadata, seen, teacher.seen["finetuning"], evidence)


def _say_next(prepared: Prepared, folder: Path, result: dict[str, Any]) -> None:
    """Reports whether the student is kept, and the commands to type next."""
    if not result["kept"]:
        teacher = from_here(Path(prepared.settings.origin or ""))
        console.say(f"not kept   {result['reason']}; the teacher is unchanged")
        console.next_command(f"clfew eval{from_option(teacher, 'finetune')}")
        return
    path = folder / ARTIFACTS["finetune"]
    console.say(f"kept       {result['reason']}")
    console.say(f"saved      {path}")
    if result["test_images"]:
        console.next_command(f"clfew eval{from_option(path, 'finetune')}")
    console.next_command(f"clfew predict IMAGE{from_option(path, 'finetune')}")
