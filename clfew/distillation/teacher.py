"""Loads the teacher, the images to learn from, and the starts of the teacher and of the student."""

import csv
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from clfew import console
from clfew.data.cache_folder import ImageCache
from clfew.data.find_scale import with_scale
from clfew.data.groups import grouped, groups_of
from clfew.data.held_out import NONE
from clfew.data.label_lists import labelled_by, read_label_list
from clfew.data.source import Source
from clfew.data.sources import open_source
from clfew.distillation.parts import Part
from clfew.errors import UserError
from clfew.finetuning.fit import FullSettings
from clfew.finetuning.labelled_data import LabelledData, held_out_of, labelled_data
from clfew.finetuning.other_sources import merged
from clfew.finetuning.places import label_list_now, renamed
from clfew.finetuning.start import (
    Network,
    Start,
    start_from_artifact,
    start_from_scratch,
    start_from_weights,
)
from clfew.models.artifacts import load_classifier
from clfew.models.classifier import Classifier, build_neck
from clfew.models.init_weights import (
    AUTO,
    SCRATCH,
    artifacts_of,
    derives_from_published,
    find_init_weights,
)
from clfew.models.kept_scale import kept_scale, scaled
from clfew.models.metadata import DISTILLED, ArtifactMetadata
from clfew.runs.files import unguarded
from clfew.runs.folders import LABELS, read_config
from clfew.settings import DistillSettings

SAME = "same"
"""The default of `--student`: the student has the teacher's encoder."""


@dataclass(frozen=True)
class Teacher:
    """The classifier that teaches.

    classifier, metadata: of its artifact. seen: digests of the images that it learned from, by step
    ("pretraining", "finetuning"). run: the folder of its run.
    """

    classifier: Classifier
    metadata: ArtifactMetadata
    seen: dict[str, np.ndarray]
    run: Path

    @property
    def settings(self) -> FullSettings:
        """What was asked for when the teacher was fitted, in mode "full"."""
        typed = read_config(self.run).get("arguments", {})
        return FullSettings(typed.get("epochs"), typed.get("batch"), typed.get("lr"))

    @property
    def can_be_refitted(self) -> bool:
        """Whether it can be fitted again to a part of the labels, to hold out the others."""
        return self.metadata.mode != DISTILLED


@dataclass(frozen=True)
class Images:
    """The images of a distillation.

    source: the labelled source; if the unlabelled images are another source, theirs follow its own.
    parts: the sources that it consists of. labelled: indices of the images whose labels the teacher was
    fitted to. labels: the class of each labelled image, -1 for all others. never: indices of the test
    sample of the list of labels, which is not learned from.
    """

    source: Source
    parts: list[Source]
    labelled: np.ndarray
    labels: np.ndarray
    never: np.ndarray = field(default_factory=lambda: NONE)


def open_teacher(artifact: Path) -> Teacher:
    """Loads a teacher. Raises UserError if the file is no classifier of clfew."""
    classifier, metadata, seen = load_classifier(artifact)
    return Teacher(classifier, metadata, seen, artifact.parent)


def at_places(teacher: Teacher, parts: list[Part]) -> Teacher:
    """Returns the teacher whose metadata name its images by where they are now."""
    metadata = teacher.metadata
    for part in parts:
        metadata = renamed(metadata, part.known, part.spec)
    return replace(teacher, metadata=metadata)


def open_images(teacher: Teacher, parts: list[Part]) -> Images:
    """Opens the images of a distillation (see `find_parts`), at the places that the teacher's metadata
    name (see `at_places`). Raises UserError."""
    learned = teacher.metadata.data["finetune"]
    rule = learned.get("split_rule", 1)
    opened = [grouped(open_source(part.spec, rule), part.group_by) for part in parts]
    source = opened[0]
    if kept := kept_scale(teacher.metadata):
        source = with_scale(source, kept=kept)
    never = NONE
    if (named := label_list_now(learned, teacher.run)) is not None:
        listed = read_label_list(source, named)
        source, never = labelled_by(source, listed), listed.held_out
    labelled, classes = _labels_of_teacher(teacher, source)
    # All on one scale, by which images are nearly the same, too.
    opened = [source, *(replace(other, scale=source.scale) for other in opened[1:])]
    source = merged(*opened) if len(opened) > 1 else source
    labels = np.full(len(source), -1)
    labels[labelled] = classes
    return Images(source, opened, labelled, labels, never)


def base_of(teacher: Teacher, source: Source, device: torch.device, seed: int) -> tuple[Start, bool]:
    """Returns the start that the teacher was fitted from, and whether it was already trained on labels.

    A teacher that is a head on frozen features still has the encoder that it was fitted on. If the whole
    network was trained, the start is loaded from where the teacher's own training started.
    """
    metadata, classifier = teacher.metadata, teacher.classifier
    is_published = derives_from_published(metadata)
    own = Start(
        classifier.encoder,
        build_neck(classifier.encoder.dim, 0),
        True,
        metadata.flip,
        metadata,
        is_published,
    )
    if metadata.mode != "full":
        return own, metadata.mode == DISTILLED
    start = str(read_config(teacher.run).get("from", ""))
    if start == SCRATCH:
        metadata = _as_encoder(metadata)
        return start_from_scratch(
            source, metadata, Network("auto", None, metadata.flip, seed=seed), device
        ), False
    if Path(start).is_file():
        return start_from_artifact(Path(start), metadata.flip), False
    if "init" in metadata.training:
        init_weights, _ = find_init_weights(
            metadata.training["init"]["source"], metadata.encoder, device
        )
        assert init_weights is not None
        return start_from_weights(source, init_weights, metadata.size, metadata.flip, device), False
    return own, True


def _as_encoder(metadata: ArtifactMetadata) -> ArtifactMetadata:
    """Returns the metadata of a classifier's encoder."""
    return replace(metadata, kind="encoder", classes=[], mode="", temperature=1.0)


def _labels_of_teacher(teacher: Teacher, source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Returns the indices and the classes of the images whose labels the teacher was fitted to, from
    the rows of labels.csv in its run that were learned from. Raises UserError if they are not there."""
    path = teacher.run / LABELS
    index = {name: i for i, name in enumerate(source.identities)}
    known = {name: c for c, name in enumerate(teacher.metadata.classes)}
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = [
                (index[unguarded(row["path"])], known[unguarded(row["label"])])
                for row in csv.DictReader(file)
                # Older ones have no column for the split.
                if row.get("split", "train") == "train" and row["label"]
            ]
    except OSError:
        raise UserError(
            f"There is no {path}, which lists the labels that the classifier was fitted to.",
            "name the run that finetune made, such as --from runs/finetune-1.",
        ) from None
    except KeyError as error:
        raise UserError(
            f"{path} lists {error}, which {source.spec} does not contain.",
            "have the images been moved? Fine-tune again, then distill.",
        ) from None
    rows.sort()
    return np.array([i for i, _ in rows]), np.array([c for _, c in rows])


def student_start(
    teacher: Teacher, base: Start, settings: DistillSettings, source: Source, device: torch.device
) -> tuple[Start, ArtifactMetadata, str]:
    """Returns the student's start, the metadata of the classifier that it will be, and the `init` that
    finds the same start again when the run is resumed, whatever weights are on the machine by then."""
    name, init, size = settings.student, settings.init, settings.size
    metadata = teacher.metadata
    if name in (SAME, metadata.encoder) and size in (None, metadata.size) and init == AUTO:
        return base, replace(metadata, mode=DISTILLED, neck=0, dim=base.encoder.dim), init
    if name == SAME and metadata.parts:
        raise UserError(
            "The teacher is several networks side by side, which start from their own weights only.",
            "leave out --init and --size, or name a network: --student resnet18.",
        )
    encoder = metadata.encoder if name == SAME else name
    init_weights, why = find_init_weights(init, encoder, device)
    scaled(source, None, [metadata, *artifacts_of(init_weights)])  # Raises if these differ.
    data = metadata.data["finetune"]
    network = Network(
        encoder,
        size,
        metadata.flip,
        seed=settings.seed,
        split_seed=data["split_seed"],
        split_rule=data.get("split_rule", 1),
    )
    start = (
        start_from_weights(source, init_weights, size, metadata.flip, device)
        if init_weights
        else start_from_scratch(source, None, network, device)
    )
    console.say(f"student    {encoder} from {init_weights.what if init_weights else 'scratch'} ({why})")
    student_metadata = replace(
        start.metadata,
        kind="classifier",
        classes=metadata.classes,
        mode=DISTILLED,
        neck=0,
        method=metadata.method,
    )
    return start, student_metadata, init_weights.source if init_weights else SCRATCH


def usable(images: Images, cache: ImageCache, split_seed: int, split_rule: int) -> LabelledData:
    """Returns what is learned from and what is tested on. Raises UserError if a labelled image cannot be
    used any more."""
    held_out, start = [], 0
    for part in images.parts:
        # As in the command that learned from this source alone.
        groups = groups_of(part, cache.part(start, start + len(part)))
        held_out.append(start + held_out_of(part, split_seed, None, groups))
        start += len(part)
    never = np.setdiff1d(np.concatenate(held_out), images.labelled)
    labelled, sample = images.labelled, images.never
    data = labelled_data(images.source, cache, never, split_seed, split_rule, labelled, sample)
    lost = np.setdiff1d(images.labelled, data.pool)
    if len(lost):
        raise UserError(
            f"The labelled image {images.source.identities[lost[0]]} cannot be used any more.",
            "is it damaged? Fine-tune again, then distill.",
        )
    return replace(data, label_samples=[images.labelled])
