"""What the processes of a command send to each other."""

import io
import pickle
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")

_PART_BYTES = 2**28
"""Large arrays are sent in parts, so that the copies on the way are small."""


class Messages:
    """Messages between the processes. They are pickled, as those of torch itself are: who can reach
    these processes' ports can reach torch's.

    rank, size: see `Launch`. store: torchrun's store of keys, while a command runs. known_arrays: those
    that all processes have, by name.
    """

    def __init__(self, rank: int, size: int, control: Any) -> None:
        self.rank, self.size, self._control = rank, size, control
        self.store: Any = None
        self.known_arrays: dict[tuple[str, str], np.ndarray] = {}

    def send(self, message: Any) -> None:
        """Sends a message to all helpers."""
        content = self._packed(message)
        dist.broadcast(torch.tensor([len(content)]), 0, group=self._control)
        dist.broadcast(torch.frombuffer(bytearray(content), dtype=torch.uint8), 0, group=self._control)

    def receive(self) -> Any:
        """Returns the leader's next message."""
        size = torch.zeros(1, dtype=torch.int64)
        dist.broadcast(size, 0, group=self._control)
        content = torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(content, 0, group=self._control)
        return self._unpacked(content.numpy().tobytes())

    def numbers(self, values: list[float]) -> list[float]:
        """Returns the leader's numbers, as many in each process: the fastest message."""
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.broadcast(tensor, 0, group=self._control)
        result: list[float] = tensor.tolist()
        return result

    def exchange(self, value: T) -> list[T]:
        """Returns the value of each process, in all of them."""
        content = self._packed(value)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([len(content)]), group=self._control)
        parts = [torch.zeros(int(max(sizes)), dtype=torch.uint8) for _ in range(self.size)]
        own = torch.zeros_like(parts[0])
        own[: len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        dist.all_gather(parts, own, group=self._control)
        return [
            self._unpacked(part[: int(size)].numpy().tobytes())
            for part, size in zip(parts, sizes, strict=True)
        ]

    def collect(self, array: np.ndarray) -> list[np.ndarray]:
        """Returns to the leader the array of each process, to the others nothing. Each process holds
        only its own, the leader all."""
        if self.rank != 0:
            shape = torch.tensor([len(array.shape), *array.shape], dtype=torch.int64)
            dist.send(torch.tensor([len(shape)]), 0, group=self._control)
            dist.send(shape, 0, group=self._control)
            self._send_bytes(array)
            return []
        arrays = [array]
        for rank in range(1, self.size):
            count = torch.zeros(1, dtype=torch.int64)
            dist.recv(count, rank, group=self._control)
            shape = torch.zeros(int(count), dtype=torch.int64)
            dist.recv(shape, rank, group=self._control)
            received = np.empty(tuple(shape[1:].tolist()), array.dtype)
            self._receive_bytes(received, rank)
            arrays.append(received)
        return arrays

    def post(self, key: str, value: Any) -> None:
        """Leaves a message under a key, for any process, at any time."""
        self.store.set(key, self._packed(value))

    def fetch(self, key: str) -> Any:
        """Returns the message under a key; waits until it is there."""
        return self._unpacked(self.store.get(key))

    def give(self, value: Any) -> None:
        """Sends a message from a helper to the leader, which must `take` it."""
        content = self._packed(value)
        dist.send(torch.tensor([len(content)]), 0, group=self._control)
        dist.send(torch.frombuffer(bytearray(content), dtype=torch.uint8), 0, group=self._control)

    def take(self, rank: int) -> Any:
        """Returns the next message of a helper."""
        size = torch.zeros(1, dtype=torch.int64)
        dist.recv(size, rank, group=self._control)
        content = torch.empty(int(size), dtype=torch.uint8)
        dist.recv(content, rank, group=self._control)
        return self._unpacked(content.numpy().tobytes())

    def _send_bytes(self, array: np.ndarray) -> None:
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        for start in range(0, len(content), _PART_BYTES):
            part = torch.from_numpy(content[start : start + _PART_BYTES])
            dist.send(part, 0, group=self._control)

    def _receive_bytes(self, array: np.ndarray, rank: int) -> None:
        content = torch.from_numpy(array.reshape(-1).view(np.uint8))
        for part in content.split(_PART_BYTES) if len(content) else ():
            dist.recv(part, rank, group=self._control)

    def _packed(self, value: Any) -> bytes:
        buffer = io.BytesIO()
        _Pickler(buffer, self.known_arrays).dump(value)
        return buffer.getvalue()

    def _unpacked(self, content: bytes) -> Any:
        return _Unpickler(io.BytesIO(content), self.known_arrays).load()


class _Pickler(pickle.Pickler):
    """Packs a message for other processes of the same command. Arrays that all of them have, those of
    image caches, are named only. Tensors are on the CPU: each process has a GPU of its own."""

    def __init__(self, file: io.BytesIO, known: dict[tuple[str, str], np.ndarray]) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._names = {id(array): name for name, array in known.items()}

    def persistent_id(self, value: Any) -> Any:
        return self._names.get(id(value)) if isinstance(value, np.ndarray) else None

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, nn.Parameter) and value.device.type != "cpu":
            return nn.Parameter, (value.detach().cpu(), value.requires_grad)
        if isinstance(value, Tensor) and value.device.type != "cpu":
            return _as_it_is, (value.detach().cpu(),)
        return NotImplemented


def _as_it_is(value: T) -> T:
    return value


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, known: dict[tuple[str, str], np.ndarray]) -> None:
        super().__init__(file)
        self._known = known

    def persistent_load(self, name: Any) -> Any:
        return self._known[name]
