"""Where the images are that artifacts learned from: under the name that they had, or elsewhere."""

from collections.abc import Collection
from dataclasses import replace
from functools import cache
from typing import Any

from clfew import console
from clfew.data.content import holds_the_same
from clfew.data.source import Source
from clfew.models.metadata import ArtifactMetadata


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
