"""Where the images are that artifacts learned from: under the name that they had, or elsewhere."""

from collections.abc import Collection
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from clfew import console
from clfew.data.content import holds_the_same
from clfew.data.label_lists import label_list_of, run_of_list
from clfew.data.labels import LabelSpec
from clfew.data.layout import LABELLED_FOLDERS
from clfew.data.lists import ListFile
from clfew.data.source import Source
from clfew.data.sources import open_source
from clfew.errors import UserError
from clfew.models.metadata import ArtifactMetadata
from clfew.runs.folders import LABELS, from_here


def group_by_of_list(spec: LabelSpec) -> str | None:
    """Returns by what the run in whose folder a list of labels lies grouped its images, None where it
    did not. It goes by their names, so that it does not matter where they lie."""
    return run_of_list(spec.listed.file).get("group_by") if spec.listed else None


def label_list_now(finetuned: dict[str, Any], run: Path) -> ListFile | None:
    """Returns the list of labels that a classifier was fitted to, None where it was fitted to none or
    the file has been removed. run: the folder of the classifier, with the finetune step `finetuned` in
    its metadata.

    Where the list has a test sample, it is the run's own copy: in the list that was given, other rows
    may have been filled in since.
    """
    if finetuned.get("test_sample") and (run / LABELS).is_file():
        return ListFile(run / LABELS)
    return label_list_of(finetuned) if Path(finetuned["label_file"] or "").is_file() else None


def known_as(source: Source, artifacts: list[ArtifactMetadata]) -> set[str]:
    """Returns the names under which steps of artifacts learned from the images of a source."""
    holds = cache(lambda content: holds_the_same(source, content))  # Once for all that learned from it.

    def is_of(step: dict[str, Any]) -> bool:
        names_agree = step["source"] == source.spec or step.get("fingerprint") == source.fingerprint
        return names_agree or holds(step.get("content"))

    steps = [step for each in artifacts for step in each.data.values() if "source" in step]
    return {step["source"] for step in steps if is_of(step)}


def say_moved(source: Source, names: set[str]) -> None:
    """Reports that the images of a source are known under another name."""
    if elsewhere := sorted(names - {source.spec}):
        console.say(f"note       these are the images of {elsewhere[0]}, elsewhere")


def renamed(metadata: ArtifactMetadata, names: Collection[str], now: str) -> ArtifactMetadata:
    """Returns the metadata of an artifact whose images of the sources `names` lie in `now`."""
    data = {
        name: step | ({"source": now} if step.get("source") in names else {})
        for name, step in metadata.data.items()
    }
    return replace(metadata, data=data)


def find_source(
    source: str | None, metadata: ArtifactMetadata | None, spec: LabelSpec | None = None
) -> str:
    """Returns the name of the labelled source: `source`, else that of the run in whose folder the
    list of labels lies, else ./labeled or ./labelled, else the source in the artifact's metadata, if
    it has labels or `spec` names a label CSV. Raises UserError if there is none."""
    if source is not None:
        return source
    if spec is not None and spec.listed is not None:
        selected = run_of_list(spec.listed.file).get("source")
        if isinstance(selected, str):
            console.say(f"source     {selected}, the images of {from_here(spec.listed.file)}")
            return selected
    for folder in LABELLED_FOLDERS:
        if Path(folder).is_dir():
            return folder
    hint = "name one: a folder with a subfolder for each class, a CSV of path,label, or hf:NAME."
    data = metadata.data if metadata else {}
    before = (data.get("pretrain") or data.get("finetune") or {}).get("source")
    if before is None:
        raise UserError("No labelled images were named, and there is no folder ./labeled.", hint)
    if spec is not None and spec.listed is not None:
        return before
    if not open_source(before).is_labelled:
        raise UserError(
            "No labelled images were named, there is no folder ./labeled, and the pretraining images in "
            f"{before} have no class folders.",
            hint,
        )
    return before


def kept_group_by(before: list[ArtifactMetadata], source: Source) -> str | None:
    """Returns by what artifacts grouped the images of a source, None where none did."""
    steps = [step for each in before for step in each.data.values()]
    kept = [step.get("group_by") for step in steps if step.get("source") == source.spec]
    return next((each for each in kept if each), None)
