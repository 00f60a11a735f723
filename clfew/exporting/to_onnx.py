"""Turns a classifier into one ONNX model, preprocessing included.

Shape suffixes: N images, H and W their sides, R side of the network's input, D features, C classes.
"""

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from clfew import console
from clfew.errors import UserError
from clfew.models.classifier import Classifier, NeighbourHead

OPSET = 18
"""The first with the operators that are used, which most runtimes know."""

LARGEST = 2**31 - 2**20
"""In bytes: an ONNX file cannot have more than 2 GiB; the graph itself takes less than one MiB."""

INPUT, VIEWS = "images", "views"
OUTPUTS = ("probabilities", "features")
NETWORK = "network/"
"""What the names of the network's part of the graph begin with."""

EXTRA = "pip install 'clfew[onnx]'"
LEAST_TORCH = "2.9"
"""Exporters before do not go with a current onnxscript."""


def require_onnx() -> None:
    """Raises UserError if a package of the extra is not installed, or torch's exporter is too old."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(name)
        except ImportError:
            raise UserError(
                f"An export needs the package {name}, which is not installed.", f"install it: {EXTRA}"
            ) from None
    if not can_export():
        raise UserError(
            f"An export needs torch {LEAST_TORCH} or later, and this is {torch.__version__}.",
            "update it: pip install --upgrade torch torchvision",
        )


def can_export() -> bool:
    """Returns whether the exporter of this torch goes with the other packages."""
    return bool(torch.__version__ >= LEAST_TORCH)  # It compares as versions do.


def require_small(name: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises UserError if the weights of a classifier, by the shapes of an artifact's tensors, do not
    fit in one ONNX file. name: of the encoder, in words."""
    of_network = [shape for key, shape in shapes.items() if key.startswith("classifier.")]
    size = 4 * sum(int(torch.Size(shape).numel()) for shape in of_network)
    if size > LARGEST:
        raise UserError(
            f"The weights of {name} take {size / 2**30:.1f} GiB, and an ONNX file holds at most 2.",
            "distil it into a smaller network: clfew distill --student resnet50 --keep",
        )


class _Network(nn.Module):
    """From views (N, 3, R, R) to probabilities (N, C) and the encoder's features (N, D)."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = copy.deepcopy(classifier).cpu().float().eval()
        # Exporters know no channels-last weights; and of how many neighbours vote, they need the number.
        self.classifier.to(memory_format=torch.contiguous_format)
        if isinstance(head := self.classifier.head, NeighbourHead):
            neighbours = head.k
            del head.neighbours
            head.neighbours = neighbours  # type: ignore[assignment]

    def forward(self, views: Tensor) -> tuple[Tensor, Tensor]:
        features = self.classifier.encoder(views)
        return torch.softmax(self.classifier.from_features(features), dim=1), features


def onnx_model(classifier: Classifier, side: int, size: int) -> Any:
    """Returns the ONNX model (onnx.ModelProto) of a classifier: `images`, uint8 (N, H, W, 3) of any N, H
    and W, to `probabilities`, float32 (N, C), and `features`, float32 (N, D).

    side, size: see `ArtifactMetadata`. Raises UserError if the network cannot be exported.
    """
    try:
        with quiet():
            return _joined(_Network(classifier), side, size)
    # Exporters fail in many ways.
    except Exception as error:
        first = error.__cause__ or error  # The outer one repeats how exporting works.
        reason = console.printable(" ".join(str(first).split()))[:200] or type(first).__name__
        raise UserError(
            f"{classifier.encoder.name} cannot be exported: torch has no ONNX form of it ({reason}).",
            "a newer torch may have one: pip install --upgrade torch onnxscript",
        ) from None


def _joined(network: _Network, side: int, size: int) -> Any:
    """Returns the ONNX model of the preprocessing and the network."""
    import onnx.compose
    import onnx.inliner

    from clfew.exporting.preprocessing import preprocessing

    before = onnx.inliner.inline_local_functions(preprocessing(side, size))
    # The names in the network's part tell its operators from those before it.
    after = onnx.compose.add_prefix(_network_model(network, size), NETWORK)
    joined = onnx.compose.merge_models(_simplified(before), after, io_map=[(VIEWS, NETWORK + VIEWS)])
    for output in joined.graph.output:
        _rename(joined.graph, output.name, output.name.removeprefix(NETWORK))
        output.type.tensor_type.shape.dim[0].dim_param = "N"
    del joined.opset_import[1:]  # Both parts had the same.
    joined.producer_name = "clfew"
    return joined


def _network_model(network: _Network, size: int) -> Any:
    """Returns the ONNX model of the network alone."""
    views = torch.rand(2, 3, size, size)
    with torch.no_grad():
        network(views)  # Once as usual: what it keeps for later calls must not be traced tensors.
        # A size that the code of a network fixes is an error here, not a batch of one size.
        exported = torch.export.export(
            network, (views,), dynamic_shapes={"views": {0: torch.export.Dim("N")}}, strict=False
        )
        program = torch.onnx.export(
            exported,
            dynamo=True,
            input_names=[VIEWS],
            output_names=list(OUTPUTS),
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def _simplified(model: Any) -> Any:
    """Returns a model without operators on constants, some of which runtimes warn about."""
    from onnxscript import optimizer

    return optimizer.optimize(model)


def _rename(graph: Any, old: str, new: str) -> None:
    """Renames an output of a graph."""
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new if each == old else each for each in names]
    for output in graph.output:
        output.name = new if output.name == old else output.name


@contextmanager
def quiet() -> Iterator[None]:
    """A context without the exporters' warnings, which say nothing that a user could mend: what matters
    is whether the model answers the same, and that is tried."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
