"""The classifier that teaches: what it is, which images it learned from, and what it was made from."""

import csv
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from clfew import console
from clfew.data.image_cache import Store
from clfew.data.labels import apply_label_csv
from clfew.data.source import Source
from clfew.data.sources import open_source
from clfew.data.splits import test_indices
from clfew.errors import UserError
from clfew.finetuning.fit import Start
from clfew.finetuning.labelled_data import merged
from clfew.finetuning.start import from_artifact, from_initial, from_scratch
from clfew.models.artifacts import load_classifier
from clfew.models.classifier import Classifier, build_neck
from clfew.models.init_weights import AUTO, SCRATCH, find_initial
from clfew.models.metadata import DISTILLED, About
from clfew.runs.files import unguarded
from clfew.runs.folders import LABELS, read_config

SAME = "same"
"""The student's encoder by default: the teacher's."""


@dataclass(frozen=True)
class Teacher:
    """classifier and about: of the artifact. seen: digests of what it has seen, by step. run: its
    folder. mode: how it was made; of a distilled one too, nothing says what the next one could start
    from."""

    classifier: Classifier
    about: About
    seen: dict[str, np.ndarray]
    run: Path

    @property
    def can_be_refitted(self) -> bool:
        """Whether the same can be made again from part of the labels, to hold out the others."""
        return self.about.mode != DISTILLED


@dataclass(frozen=True)
class Images:
    """What there is to learn from. source: the labelled source, with the unlabelled one's images after
    its own where that is another. held_out: indices that are never learned from. labelled: those whose
    labels the teacher was given, with the class of each in `labels`, -1 for all others."""

    source: Source
    held_out: np.ndarray
    labelled: np.ndarray
    labels: np.ndarray


def open_teacher(artifact: Path) -> Teacher:
    """Raises UserError for a file that is no classifier of clfew."""
    classifier, about, seen = load_classifier(artifact)
    return Teacher(classifier, about, seen, artifact.parent)


def open_images(teacher: Teacher, unlabelled: str | None) -> Images:
    """The labelled images of a teacher and the unlabelled ones: those named, else what was pretrained
    on, else the rest of the labelled source. Raises UserError."""
    learned = teacher.about.data["finetune"]
    source = open_source(learned["source"])
    if learned["label_file"] and Path(learned["label_file"]).is_file():
        source, _ = apply_label_csv(source, Path(learned["label_file"]))
    seed = learned["split_seed"]
    named, labelled = _drawn(teacher, source)
    held_out = np.setdiff1d(test_indices(source, seed), named)
    before = teacher.about.data.get("pretrain", {}).get("source")
    spec = unlabelled or before or source.spec
    other = open_source(spec)
    if other.spec != source.spec:
        count = len(source)
        held_out = np.concatenate([held_out, count + test_indices(other, seed)])
        source = merged(source, other)
    labels = np.full(len(source), -1)
    labels[named] = labelled
    return Images(source, held_out, named, labels)


def base_of(teacher: Teacher, source: Source, device: torch.device, seed: int) -> tuple[Start, bool]:
    """What the teacher was fitted from, and whether it has seen labels already.

    A head on frozen features still has the encoder it was fitted on. A network that was trained whole
    has not: its start is read from where it was.
    """
    about, classifier = teacher.about, teacher.classifier
    is_published = (
        "init" in about.training or about.training.get("pretrain", {}).get("init", SCRATCH) != SCRATCH
    )
    own = Start(
        classifier.encoder, build_neck(classifier.encoder.dim, 0), True, about.flip, is_published
    )
    if about.mode != "full":
        return own, about.mode == DISTILLED
    origin = str(read_config(teacher.run).get("from", ""))
    if origin == SCRATCH:
        about = _as_encoder(about)
        return from_scratch(source, about, "auto", None, about.flip, device, seed).start, False
    if Path(origin).is_file():
        return from_artifact(Path(origin), about.flip).start, False
    if "init" in about.training:
        initial, _ = find_initial(about.training["init"]["source"], about.encoder, device)
        assert initial is not None
        return from_initial(source, initial, about.size, about.flip, device).start, False
    return own, True


def _as_encoder(about: About) -> About:
    return replace(about, kind="encoder", classes=[], mode="", temperature=1.0)


def _drawn(teacher: Teacher, source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Indices and classes of the images whose labels the teacher was given: labels.csv in its run."""
    path = teacher.run / LABELS
    index = {name: i for i, name in enumerate(source.identities)}
    known = {name: c for c, name in enumerate(teacher.about.classes)}
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = [
                (index[unguarded(row["path"])], known[unguarded(row["label"])])
                for row in csv.DictReader(file)
            ]
    except OSError:
        raise UserError(
            f"There is no {path}, which says whose labels the classifier was given.",
            "name the run that finetune made, such as --from runs/finetune-1.",
        ) from None
    except KeyError as error:
        raise UserError(
            f"{path} names {error}, which {source.spec} does not have.",
            "have the images been moved? Fine-tune again, then distill.",
        ) from None
    rows.sort()
    return np.array([i for i, _ in rows]), np.array([c for _, c in rows])


def student_start(
    teacher: Teacher, base: Start, name: str, init: str, size: int | None, source: Source,
    device: torch.device, seed: int,
) -> tuple[Start, About, str]:  # fmt: skip
    """What a student starts from, the description of the classifier it will be, and the `init` that
    leads there again whatever weights are on the machine by then."""
    about = teacher.about
    if name in (SAME, about.encoder) and size in (None, about.size) and init == AUTO:
        return base, replace(about, mode=DISTILLED, neck=0, dim=base.encoder.dim), init
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
    described = replace(
        origin.about, kind="classifier", classes=about.classes, mode=DISTILLED, neck=0,
        method=about.method,
    )  # fmt: skip
    return origin.start, described, initial.source if initial else SCRATCH


def usable(images: Images, store: Store) -> tuple[np.ndarray, np.ndarray]:
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
