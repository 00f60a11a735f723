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

OTHER = "13 points worse to 1 better, and 1.4 to 4.5 times as fast"
"""Students of EfficientNet-Lite0, on aerial photographs, CIFAR-10 and Fashion-MNIST: the same network on
smaller images, and resnet8, with or without SimCLR on the same images. A resnet18 learned nothing in two
minutes on two cores, and was no faster."""


def expectation(setup: DistillationSetup, can_compare: bool, keep: bool) -> str:
    """Returns in words whether students were better than their teachers in such a case. can_compare:
    whether held-out labels tell if this one is. keep: whether it is kept in any case."""
    decided = "held-out labels decide whether the student is kept"
    if keep:
        decided = "the student is kept" + ("" if can_compare else " without a comparison")
    student, teacher = setup.student, setup.teacher
    if (student.metadata.encoder, student.metadata.size) != (
        teacher.metadata.encoder,
        teacher.metadata.size,
    ):
        return (
            f"a network for speed: small students of a large teacher were {OTHER}, where it was "
            f"measured; {decided}"
        )
    low, high = PRETRAINED if student.is_published else FROM_SCRATCH
    gains = f"{low:+.1f} to {high:+.1f} points where it was measured"
    return f"about the teacher's accuracy ({gains}); {decided}"
