"""Finds the networks that fine-tuning can start from, before anything is loaded (see `start`)."""

from pathlib import Path
from typing import Any

import torch

from clfew import console
from clfew.errors import UsageError, UserError
from clfew.models.init_weights import (
    AUTO,
    IMAGENET,
    SCRATCH,
    InitWeights,
    find_init_weights,
    own_artifact,
)
from clfew.models.metadata import MOST_PARTS, read_metadata
from clfew.runs.files import digest_of
from clfew.runs.folders import check_same_file, find_artifact, newest, with_beside

_PRETRAIN_FIRST = (
    "pretrain first: clfew pretrain FOLDER; or skip pretraining: clfew finetune --from scratch, or "
    "--init imagenet."
)


def is_from_scratch(origin: str | None, init: str) -> bool:
    """Returns whether --from (`origin`) or --init asks for random weights."""
    return SCRATCH in (origin, init)


def find_start(
    origin: str | None, init: str, encoder: str, device: torch.device
) -> Path | InitWeights | None:
    """Returns where the start that --from (`origin`) and --init name is: an artifact of clfew, of which
    only the network is used from scratch, or other weights; None from scratch without a run. Nothing is
    loaded yet.

    Raises UserError where there is no start; UsageError where both options name one.
    """
    if origin is not None and init != AUTO:
        raise UsageError("--from and --init both name a start.", "give one of them.")
    if is_from_scratch(origin, init):
        return newest("pretrain")
    if origin is not None:
        return find_artifact(origin, "pretrain", _PRETRAIN_FIRST)
    if init == AUTO:
        return _found_by_itself(encoder, device)
    if init != IMAGENET and (path := own_artifact(Path(init))):
        return path
    return find_init_weights(init, encoder, device)[0]


def find_starts(
    origins: list[str], init: str, encoder: str, device: torch.device
) -> list[Path | InitWeights | None]:
    """Returns what `find_start` does, once for each `--from`; and without one, where the newest run was
    made beside another to choose from, both. Raises UserError, and UsageError for several starts that
    cannot be compared."""
    if len(origins) < 2:
        found = find_start(origins[0] if origins else None, init, encoder, device)
        by_itself = not origins and init == AUTO
        return [*with_beside(found)] if by_itself and isinstance(found, Path) else [found]
    if init != AUTO or SCRATCH in origins:
        raise UsageError(
            "Several --from are encoders to choose from, and "
            + (f"--init {init} is not." if init != AUTO else "scratch has no features to compare."),
            "name runs or artifacts only: --from runs/pretrain-1 --from runs/pretrain-2.",
        )
    artifacts = {
        path.resolve(): path
        for path in (find_artifact(each, "pretrain", _PRETRAIN_FIRST) for each in origins)
    }
    if len(artifacts) > MOST_PARTS:
        raise UsageError(f"{len(artifacts)} starts were named.", f"name {MOST_PARTS} at most.")
    for path in artifacts.values():
        if len(artifacts) > 1 and read_metadata(path)[0].parts:
            raise UserError(
                f"{path} holds several networks side by side already.",
                "name the pretraining runs that it was made from.",
            )
    return [*artifacts.values()]


def _found_by_itself(encoder: str, device: torch.device) -> Path | InitWeights:
    """Returns the newest pretraining run's artifact, else weights that are on this machine."""
    if encoder == "auto" and (artifact := newest("pretrain")):
        return artifact
    init_weights, why = find_init_weights(AUTO, encoder, device)
    if init_weights is None:
        find_artifact(None, "pretrain", _PRETRAIN_FIRST)  # Raises UserError if there is no run.
        raise UserError(f"There is nothing to start {encoder} from: {why}.", _PRETRAIN_FIRST)
    console.say(f"start      {init_weights.what}, not pretrained on your images ({why})")
    return init_weights


def start_row(found: Path | InitWeights | None) -> dict[str, Any]:
    """Returns what `find_start` found as a run's config.json keeps it, so that the run can be resumed
    (see `restored_start`)."""
    row: dict[str, Any] = dict.fromkeys(("artifact", "digest", "weights", "weights_digest"))
    if isinstance(found, Path):
        row |= {"artifact": str(found.resolve()), "digest": digest_of(found)}
    elif found is not None:
        row["weights"] = [found.source, found.encoder]
        if (file := Path(found.source)).is_file():
            row["weights_digest"] = digest_of(file)
    return row


def restored_start(row: dict[str, Any], device: torch.device) -> Path | InitWeights | None:
    """Returns what `find_start` found from the row that `start_row` made of it. Raises UserError if its
    file has changed."""
    if row["artifact"]:
        check_same_file(Path(row["artifact"]), row["digest"], "which the run started from")
        return Path(row["artifact"])
    if row["weights"] is None:
        return None
    source, encoder = row["weights"]
    if row["weights_digest"]:
        check_same_file(Path(source), row["weights_digest"], "which the run started from")
    return find_init_weights(source, encoder, device)[0]
