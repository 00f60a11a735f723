"""An ONNX model with weights and activations of 8 bits."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from clfew.exporting.to_onnx import INPUT, NETWORK, quiet

QUANTIZED = ("Conv", "Gemm", "MatMul")
"""The operators whose inputs are quantized; the head, whose logits decide, is not."""


class _Images:
    """Images one at a time, in the form in which ONNX Runtime's calibration asks for them."""

    def __init__(self, images: list[np.ndarray]) -> None:
        self._left = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self._left, None)
        return None if image is None else {INPUT: image[None]}


def quantized(model: Any, images: list[np.ndarray]) -> Any:
    """Returns the model (onnx.ModelProto) with the network's convolutions and matrix products in 8 bits.

    Quantization is static: the ranges of the activations are those on `images`, uint8 (H, W, 3) each.
    Weights have a scale for each channel, and 7 bits: products of 8 bits overflow on processors without
    VNNI (ONNX Runtime's documentation, "Quantize ONNX models"), which would answer differently.
    """
    import onnx
    from onnxruntime import quantization

    of_network = [
        node.name
        for node in model.graph.node
        if node.op_type in QUANTIZED and node.name.startswith(NETWORK)
    ]
    with tempfile.TemporaryDirectory() as folder, quiet():
        before, after = Path(folder) / "before.onnx", Path(folder) / "after.onnx"
        onnx.save(model, str(before))  # Given a model instead of a file, it would change that.
        quantization.quantize_static(
            str(before),
            str(after),
            _Images(images),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            nodes_to_quantize=of_network[:-1],
        )
        result = onnx.load(str(after))
    del result.metadata_props[:]  # What the quantization adds.
    return result
