"""Runs that are ended and gone on with, and the whole ones they are compared with."""

import json
import signal

from faults import steps_taken

METHODS = {
    **{name: (name,) for name in ("simclr", "byol", "jigsaw", "context-prediction", "colorization")},
    "denoising": ("denoising",), "denoising-stacked": ("denoising", "--stacked"),
    "inpainting": ("inpainting",), "inpainting-adversarial": ("inpainting", "--adversarial"),
    "split-brain": ("split-brain",), "counting": ("counting",),
}  # fmt: skip
STEPS = 12
TINY = ("--encoder", "resnet8-w8", "--batch", "16", "--epochs", "6", "--init", "scratch")
ENDS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}


def command(name):
    return ("pretrain", "unlabeled", *TINY, "--method", *METHODS[name])


def steps_of(run):
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_went_on(resumed, reference, training, saved, repeats_ended=True):
    """It took the steps that were not saved, of the training that was ended and of those after it:
    otherwise, as all that is drawn is the same again, one that begins anew would end the same too."""
    told = steps_taken(reference.with_name(f"{reference.name}.stderr").read_text())
    steps = [told[number] for number in sorted(told)]
    expected = [steps[training - 1] - saved, *steps[training:]]
    ended = [0] * (training - 1) if repeats_ended else []
    assert list(steps_taken(resumed.stderr).values()) == ended + expected
