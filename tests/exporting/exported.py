"""What tests of exports share: classifiers of every kind, and both sides of a comparison."""

import numpy as np
import torch
from PIL import Image
from torch import nn

from clfew.data.decode import to_square
from clfew.models.classifier import Classifier, NeighbourHead, UnitHead, build_neck
from clfew.models.encoder import Encoder
from clfew.models.features import apply
from clfew.models.side_by_side import SideBySide

MEAN, STD, CLASSES = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3], 3


def small(size=16, name="resnet8-w8", **options):
    return Encoder(name, size, MEAN, STD, **options)


def classifier_of(encoder, head=None, neck=0):
    torch.manual_seed(0)
    width = neck or encoder.dim
    head = nn.Linear(width, CLASSES) if head is None else head(width)
    classifier = Classifier(encoder, build_neck(encoder.dim, neck), head)
    classifier.temperature = 0.6
    with_statistics(classifier)
    return classifier.eval()


def with_statistics(classifier):
    """Gives BatchNorm the statistics of some images. Those of an untrained network, 0 and 1, would hide
    a layer left out, and let the features of a deep one vanish."""
    size = classifier.encoder.size
    views = torch.rand(16, 3, size, size) * torch.rand(16, 3, 1, 1)
    for module in classifier.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # One pass sets them.
    classifier.train()
    with torch.no_grad():
        classifier.neck(classifier.encoder(views))


def shallow(network):
    """Takes out repeated blocks, which are the same code once more: a block with a sibling before it of
    the same kind, the same shapes and the same shift of windows."""
    for parent in list(network.modules()):
        if not isinstance(parent, nn.Sequential):
            continue
        before = set()
        for number, child in enumerate(parent):
            shapes = tuple((name, tuple(value.shape)) for name, value in child.named_parameters())
            shifts = tuple(str(getattr(each, "shift_size", "")) for each in child.modules())
            if shapes and (type(child), shapes, shifts) in before:
                parent[number] = nn.Identity()
            before.add((type(child), shapes, shifts))


def neighbours(width):
    labels = torch.arange(30) % CLASSES
    return NeighbourHead(torch.randn(30, width), labels, CLASSES, k=7, floor=0.01)


def unit(width):
    head = UnitHead(width, CLASSES)
    head.centre.normal_()
    return head


def side_by_side():
    encoder = SideBySide([small(), small(24)])
    encoder.centre.normal_()
    encoder.std_of_features.uniform_(0.5, 2)
    return encoder


KINDS = {
    "linear": lambda: classifier_of(small()),
    "knn": lambda: classifier_of(small(), neighbours),
    "unit": lambda: classifier_of(small(), unit),
    "neck": lambda: classifier_of(small(), neck=12),
    "side by side": lambda: classifier_of(side_by_side(), neighbours),
    "lab": lambda: classifier_of(small(name="split:resnet8-w8", input="lab")),
    "lightness": lambda: classifier_of(small(input="lightness")),
    "stage": lambda: classifier_of(small(stage=2)),
    "adapter": lambda: classifier_of(small(adapter=8)),
}


def images(shapes, seed=0):
    """Batches of two images for each width and height: noise with large spots, the second one grey."""
    random = np.random.default_rng(seed)
    for width, height in shapes:
        noise = random.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
        spots = random.integers(0, 256, (2, -(-height // 7), -(-width // 7), 3), dtype=np.uint8)
        noise = noise // 2 + spots.repeat(7, 1).repeat(7, 2)[:, :height, :width] // 2
        noise[1] = noise[1].mean(2, keepdims=True)
        yield noise


def outputs(network, pixels_NxHxWx3, side):
    """What a network of clfew returns for images that are decoded already."""
    squares = [to_square(Image.fromarray(each), side) for each in pixels_NxHxWx3]
    pixels = np.stack([pixels for pixels, _ in squares])
    aspects = np.array([aspect for _, aspect in squares], np.float32)
    size = network.size if isinstance(network, Encoder) else network.encoder.size
    return apply(network, size, pixels, aspects, torch.device("cpu"))


def probabilities(classifier, pixels_NxHxWx3, side):
    """What clfew says of such images."""
    return torch.softmax(torch.from_numpy(outputs(classifier, pixels_NxHxWx3, side)), dim=1).numpy()


def exported(classifier, side, size):
    from clfew.exporting.runtime import Session
    from clfew.exporting.to_onnx import onnx_model

    model = onnx_model(classifier, side, size)
    return model, Session(model.SerializeToString())


SHAPES = [(8, 8), (5000, 10), (64, 48), (1600, 1200)]


def compare(classifier, side, session, shapes=SHAPES, batches=(1, 2), within=2e-5):
    for number, pixels in enumerate(images(shapes)):
        ours = probabilities(classifier, pixels, side)
        assert np.ptp(ours) > 0.001  # Else any answer would be right.
        for batch in batches:
            found = session.probabilities(pixels[:batch])
            np.testing.assert_allclose(found, ours[:batch], rtol=0, atol=within, err_msg=shapes[number])
