"""Commands of runs that tests interrupt and resume, and a check that they were resumed."""

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
PRETRAIN = ("pretrain", "unlabeled", *TINY)
ENDS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}


def command(name):
    return (*PRETRAIN, "--method", *METHODS[name])


def steps_of(run):
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_resumed(resumed, reference, training, saved, repeats_ended=True):
    """Checks that the resumed run took only the steps that had not been saved.

    training: the training that was interrupted, counted from 1. saved: its saved steps. It is not enough
    to compare results: a run that starts from the beginning again uses the same random numbers and ends
    with the same weights.
    """
    counted = steps_taken(reference.with_name(f"{reference.name}.stderr").read_text())
    steps = [counted[number] for number in sorted(counted)]
    expected = [steps[training - 1] - saved, *steps[training:]]
    ended = [0] * (training - 1) if repeats_ended else []
    assert list(steps_taken(resumed.stderr).values()) == ended + expected
