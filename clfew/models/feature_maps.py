"""Feature maps: a network's features at each position of an image, stage by stage.

A stage ends with the last layer before the resolution changes; the last stage ends before the features
are pooled.
Shape suffixes: N images, C channels, H and W of a map.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from clfew.errors import UserError


def output_shapes(module: nn.Module, size: int) -> Any:
    """Returns a module's output for two images of `size` pixels as tensors on the meta device, which
    have shapes only. Nothing is computed, no weight is changed and no memory is allocated. Raises
    RuntimeError if the module cannot take such images."""
    modes = [(each, each.training) for each in module.modules()]
    meta_tensors = {k: v.to("meta") for k, v in [*module.named_parameters(), *module.named_buffers()]}
    try:
        with torch.no_grad():
            images = torch.zeros(2, 3, size, size, device="meta")
            return torch.func.functional_call(module.eval(), meta_tensors, images)
    finally:
        for each, was_training in modes:
            each.training = was_training


def stage_modules(backbone: nn.Module, size: int) -> list[str]:
    """Returns the names of the modules that end a stage for images of `size` pixels, from the input on.

    They are found from the shape of each module's output, so any network of feature maps (N, C, H, W)
    has them. Raises UserError for a network without, such as a Transformer.
    """
    found: list[tuple[str, int]] = []
    hooks = [
        module.register_forward_hook(
            lambda _, __, output, name=name: found.append((name, _side(output)))
        )
        for name, module in backbone.named_modules()
        if name
    ]
    try:
        output_shapes(backbone, size)
    finally:
        for hook in hooks:
            hook.remove()
    # A map of side one is a pooled vector, at the end or within a block (squeeze and excitation). Later
    # modules overwrite earlier ones of the same side, which leaves the last module of each side.
    last = {side: name for name, side in found if side > 1}
    # A Transformer has a map of its patches too, but most of its modules come after that map.
    positions = [position for position, (_, side) in enumerate(found) if side > 1]
    if not last or positions[-1] < len(found) / 2:
        raise UserError(
            "This encoder has no feature maps, which are needed here.",
            "use a convolutional one: --encoder resnet8-w32 or resnet18.",
        )
    return [last[side] for side in sorted(last, reverse=True)]


def _side(output: object) -> int:
    """Returns the side of a square map (N, C, S, S), 0 for any other output."""
    is_map = isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] == output.shape[3]
    return output.shape[2] if is_map and isinstance(output, Tensor) else 0


def feature_maps(backbone: nn.Module, names: list[str], inputs_NxCxHxW: Tensor) -> list[Tensor]:
    """Returns the outputs of the modules `names` for these inputs, as float maps (N, C, H, W). The
    backbone runs once."""
    maps: dict[str, Tensor] = {}

    def keep(name: str) -> object:
        def hook(_: nn.Module, __: object, output: Tensor) -> None:
            maps[name] = output

        return hook

    hooks = [backbone.get_submodule(name).register_forward_hook(keep(name)) for name in names]  # type: ignore[arg-type]
    try:
        # Not by calling it: a compiled backbone would not notice other hooks than its first ones.
        backbone.forward(inputs_NxCxHxW)
    finally:
        for hook in hooks:
            hook.remove()
    return [maps[name] for name in names]


@contextlib.contextmanager
def replaced(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """A context in which `change` is applied to a module's output."""
    hook = module.register_forward_hook(lambda _, __, output: change(output))
    try:
        yield
    finally:
        hook.remove()
