"""Runs an ONNX model in ONNX Runtime."""

from typing import Any

import numpy as np
import torch

from clfew.errors import UserError
from clfew.exporting.to_onnx import INPUT, OUTPUTS


class Session:
    """A model in ONNX Runtime, on the CPU and with this process's number of threads. Its methods and the
    loading of the model raise UserError for whatever ONNX Runtime raises."""

    def __init__(self, model: bytes) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session: Any = onnxruntime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise _failure(error) from None

    def probabilities(self, images_NxHxWx3: np.ndarray) -> np.ndarray:
        """Returns the probabilities (N, C) of uint8 images."""
        return self._run(OUTPUTS[0], images_NxHxWx3)

    def features(self, images_NxHxWx3: np.ndarray) -> np.ndarray:
        """Returns the features (N, D) of uint8 images."""
        return self._run(OUTPUTS[1], images_NxHxWx3)

    def _run(self, output: str, images_NxHxWx3: np.ndarray) -> np.ndarray:
        try:
            result: np.ndarray = self._session.run([output], {INPUT: images_NxHxWx3})[0]
        except Exception as error:
            raise _failure(error) from None
        return result


def _failure(error: Exception) -> UserError:
    # The errors of ONNX Runtime have no common class.
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return UserError(
        f"ONNX Runtime cannot run the model ({reason}).",
        "another version may: pip install --upgrade onnxruntime; large images also need much memory.",
    )
