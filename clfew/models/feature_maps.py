"""The maps inside a network: what it says of each place in an image, stage by stage.

A stage ends with the last layer before the resolution changes, the last one before features are pooled.
Shape suffixes: N images, C channels, H and W of a map.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from clfew.errors import UserError


def output_shapes(module: nn.Module, size: int) -> Any:
    """What a module gives for two images of `size` pixels, on the meta device: nothing is computed, no
    weight is changed and no memory taken. Raises RuntimeError where it cannot take them."""
    modes = [(each, each.training) for each in module.modules()]
    nowhere = {k: v.to("meta") for k, v in [*module.named_parameters(), *module.named_buffers()]}
    try:
        with torch.no_grad():
            images = torch.zeros(2, 3, size, size, device="meta")
            return torch.func.functional_call(module.eval(), nowhere, images)
    finally:
        for each, was_training in modes:
            each.training = was_training


def stage_modules(backbone: nn.Module, size: int) -> list[str]:
    """The names of the modules that end a stage, from the image on, for images of `size` pixels.

    Found by looking at the shapes of what comes out of each module, so any network that
    works on maps (N, C, H, W) has them. Raises UserError for one that does not, as Transformers.
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
    # A side of one is a pooled vector, at the end or within a block (squeeze and excitation).
    last = {side: name for name, side in found if side > 1}
    # A Transformer has a map of its patches, and most of it comes after that.
    places = [place for place, (_, side) in enumerate(found) if side > 1]
    if not last or places[-1] < len(found) / 2:
        raise UserError(
            "This encoder has no maps of its images, which this needs.",
            "take a convolutional one: --encoder resnet8-w32 or resnet18.",
        )
    return [last[side] for side in sorted(last, reverse=True)]


def _side(output: object) -> int:
    """The side of a square map (N, C, S, S); 0 for anything else."""
    is_map = isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] == output.shape[3]
    return output.shape[2] if is_map and isinstance(output, Tensor) else 0


def feature_maps(backbone: nn.Module, names: list[str], inputs_NxCxHxW: Tensor) -> list[Tensor]:
    """What the modules `names` give for these inputs, as float maps (N, C, H, W), by one pass."""
    maps: dict[str, Tensor] = {}

    def keep(name: str) -> object:
        def hook(_: nn.Module, __: object, output: Tensor) -> None:
            maps[name] = output

        return hook

    hooks = [backbone.get_submodule(name).register_forward_hook(keep(name)) for name in names]  # type: ignore[arg-type]
    try:
        backbone(inputs_NxCxHxW)
    finally:
        for hook in hooks:
            hook.remove()
    return [maps[name] for name in names]


@contextlib.contextmanager
def replaced(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside this context a module gives `change` of what it gives otherwise."""
    hook = module.register_forward_hook(lambda _, __, output: change(output))
    try:
        yield
    finally:
        hook.remove()
