"""The sources that a distillation learns from: the teacher's labelled images, and unlabelled ones. The
same images at another place are the same.
"""

import os
from dataclasses import dataclass, replace
from typing import Any

from clfew.data.content import same_images
from clfew.data.lists import parse
from clfew.data.source import Source
from clfew.data.sources import open_source
from clfew.errors import UserError
from clfew.finetuning.places import known_as, say_moved
from clfew.models.metadata import ArtifactMetadata


@dataclass(frozen=True)
class Part:
    """A source of a distillation.

    spec: its name. group_by: see `groups.grouped`. known: the names under which the teacher learned from
    its images.
    """

    spec: str
    group_by: str | None
    known: list[str]


def find_parts(teacher: ArtifactMetadata, unlabelled: str | None) -> list[Part]:
    """Returns the labelled images and, if these are another source, the unlabelled ones: those of
    `unlabelled`, else the teacher's pretraining images.

    Raises UserError if there is no such source.
    """
    learned, before, rule = teacher.data["finetune"], teacher.data.get("pretrain", {}), _rule(teacher)
    if unlabelled is not None:
        named = open_source(unlabelled, rule)
    elif before and not same_images(before.get("content"), learned.get("content")):
        hint = "name unlabelled images: clfew distill FOLDER"
        named = _opened(before["source"], rule, "The images that the teacher was pretrained on", hint)
    else:
        hint = "name where they are now: clfew distill FOLDER"
        named = _opened(learned["source"], rule, "The images that the teacher was fitted to", hint)
    known = known_as(named, [teacher])
    say_moved(named, known)
    is_one = learned["source"] in known
    is_pretraining = before.get("source") in known
    group_by = learned.get("group_by") if is_one else before.get("group_by") if is_pretraining else None
    part = Part(named.spec, group_by, sorted(known))
    return [part] if is_one else [_labelled_part(teacher, part), part]


def _labelled_part(teacher: ArtifactMetadata, other: Part) -> Part:
    """Returns the labelled images, where they were or, if the unlabelled ones have been moved, beside
    these as they were before."""
    learned, rule = teacher.data["finetune"], _rule(teacher)
    spec, group_by = learned["source"], learned.get("group_by")
    for place in (spec, *(_beside(spec, old, other.spec) for old in other.known)):
        if found := _open_or_none(place, rule):
            known = known_as(found, [teacher])
            if spec in known:
                say_moved(found, known)
                return Part(found.spec, group_by, sorted(known))
    raise UserError(
        f"The labelled images that the teacher was fitted to are not in {spec} any more.",
        "put them or a link to them there, or fine-tune again where they are now.",
    )


def restored_parts(
    teacher: ArtifactMetadata, rows: list[dict[str, Any]], place: str | None, command: str
) -> list[Part]:
    """Returns the sources of a run that is resumed. rows: as its config.json keeps them. place: where
    the images of one of them are now, None where they were. command: the one that resumes it. Raises
    UserError for images that are not there."""
    parts, rule = [Part(**row) for row in rows], _rule(teacher)
    if place is not None:
        named = open_source(place, rule)
        is_labelled = teacher.data["finetune"]["source"] in known_as(named, [teacher])
        moved = 0 if is_labelled else len(parts) - 1
        before = parts[moved].spec
        parts[moved] = replace(parts[moved], spec=named.spec)
        for i, part in enumerate(parts):
            # What lay beside the images may have been moved with them.
            if i != moved and not _open_or_none(part.spec, rule):
                parts[i] = replace(part, spec=_beside(part.spec, before, named.spec))
    for part in parts:
        hint = f"name where they are now: {command} FOLDER"
        _opened(part.spec, rule, "Images that the run learns from", hint)
    return parts


def _rule(teacher: ArtifactMetadata) -> int:
    rule: int = teacher.data["finetune"].get("split_rule", 1)
    return rule


def _beside(spec: str, before: str, now: str) -> str:
    """Returns where a source would lie if it had been moved together with another one, from `before` to
    `now`."""
    if any(each.startswith("hf:") for each in (spec, before, now)):
        return spec
    return os.path.normpath(os.path.join(now, os.path.relpath(spec, before)))


def _open_or_none(spec: str, rule: int) -> Source | None:
    try:
        return open_source(spec, rule)
    except UserError:
        return None


def _opened(spec: str, rule: int, what: str, hint: str) -> Source:
    """Returns a source that an earlier command has read. what: its images, in words."""
    if not spec.startswith("hf:") and not parse(spec).file.exists():
        raise UserError(f"{what} are not in {spec} any more.", hint)
    return open_source(spec, rule)
