"""What to expect of a student, said before it is trained: what students gained where this was measured.

The figures are those of `examples/benchmarks/students.py`: points of accuracy on test splits, less those
of the teacher, with one label sample and two minutes for each student.
"""

from clfew.distillation.student import DistillationSetup

FROM_SCRATCH = (-0.8, 1.0)
"""The smallest and the largest gain of students of their teacher's network whose weights were trained
from scratch on the same images: hand signs, Fashion-MNIST and CIFAR-10, with 5 and 50 labels per class,
teachers of the modes "propagate", "linear" and "full". No kind of teacher or number of labels had gains
on all of the sets."""

PRETRAINED = (-1.6, 0.0)
"""The same with pretrained weights, of which a layer or half of the network learned: aerial photographs
and CIFAR-10, 5 labels per class. The layer alone lost nothing."""


def expectation(setup: DistillationSetup) -> str:
    """Returns in words whether students were better than their teachers in such a case."""
    if setup.student.encoder is not setup.teacher.encoder:
        return "another network than the teacher's: for speed, as a small one is less accurate"
    low, high = PRETRAINED if setup.student.is_published else FROM_SCRATCH
    return (
        f"about the teacher's accuracy ({low:+.1f} to {high:+.1f} points where it was measured): "
        "held-out labels decide whether the student is kept"
    )
