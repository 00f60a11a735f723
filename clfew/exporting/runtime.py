"""Runs an ONNX model in ONNX Runtime."""

from typing import Any

import numpy as np
import torch

from clfew.exporting.to_onnx import INPUT, OUTPUTS


class Session:
    """A model in ONNX Runtime, on the CPU and with this process's number of threads."""

    def __init__(self, model: bytes) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._session: Any = onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"]
        )

    def probabilities(self, images_NxHxWx3: np.ndarray) -> np.ndarray:
        """Returns the probabilities (N, C) of uint8 images."""
        result: np.ndarray = self._session.run([OUTPUTS[0]], {INPUT: images_NxHxWx3})[0]
        return result

    def features(self, images_NxHxWx3: np.ndarray) -> np.ndarray:
        """Returns the features (N, D) of uint8 images."""
        result: np.ndarray = self._session.run([OUTPUTS[1]], {INPUT: images_NxHxWx3})[0]
        return result
