"""Builds backbones from their names.

`resnetD-wW` (resnet8-w32, resnet14-w64, …) is a small ResNet for small images and small budgets.
`timm:NAME` is one of timm's networks. Every other name is one of torchvision's classification networks
without its classifier. For small images these get a different stem, which pretrained weights do not fit;
`torchvision:NAME` is the unchanged torchvision network at every size. `split:NAME` is two networks NAME
side by side, one for lightness and one for colour.
"""

import re
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from clfew.errors import UserError
from clfew.models import timm_backbones
from clfew.models.feature_maps import feature_maps, stage_modules

SMALL_IMAGE = 64
"""Up to this size a torchvision network gets a 3×3 stem without max-pool (SimCLR, appendix B.9)."""

TORCHVISION_PREFIX = "torchvision:"
SPLIT = "split:"

_SMALL_RESNET = re.compile(r"resnet(\d+)-w(\d+)")

_REGISTERED: dict[str, Callable[[int], nn.Module]] = {}


class ShapesOnly(TorchFunctionMode):
    """A context in which networks are built without allocating or initialising their weights, so that
    the metadata of a file can be checked before it is trusted.

    Only tensors made by the functions in `_ALLOCATE` are put on the meta device. `torch.device("meta")`
    would put every tensor there, but RegNets compute their widths with tensors.
    """

    _ALLOCATE = frozenset({torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn})

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function in self._ALLOCATE and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return function(*args, **kwargs)


def register_encoder(name: str, build: Callable[[int], nn.Module]) -> None:
    """Registers the backbone `name`: `build(size)` returns a network from normalised images
    (N, 3, size, size) to features (N, dim). Artifacts with this backbone can be loaded wherever the same
    name is registered."""
    _REGISTERED[name] = build


class Halves(nn.Module):
    """Two separate networks whose features are concatenated: the input of one is the lightness, that of
    the other the two colour channels (Zhang et al., Split-Brain Autoencoders, CVPR 2017, section 3).

    Takes normalised L, a, b of shape (N, 3, size, size). Pretrained networks have three input channels:
    the first network gets L in all three, the second a, b and 0.
    """

    def __init__(self, name: str, size: int) -> None:
        super().__init__()
        self.light, self.colour = build_backbone(name, size), build_backbone(name, size)
        self.stages = stage_modules(self.light, size)

    def forward(self, lab_NxCxSxS: Tensor) -> Tensor:
        light, colour = self.inputs(lab_NxCxSxS)
        return torch.cat([self.light(light).flatten(1), self.colour(colour).flatten(1)], dim=1)

    def inputs(self, lab_NxCxSxS: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the input of each of the two networks, lightness first."""
        light = lab_NxCxSxS[:, :1]
        return light.expand(-1, 3, -1, -1), torch.cat([lab_NxCxSxS[:, 1:], 0 * light], dim=1)

    def maps_of_both(self, lab_NxCxSxS: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Returns the feature maps of both networks at each stage; see `clfew.models.feature_maps`."""
        light, colour = self.inputs(lab_NxCxSxS)
        light_maps, colour_maps = (
            feature_maps(n, self.stages, x) for n, x in ((self.light, light), (self.colour, colour))
        )
        return list(zip(light_maps, colour_maps, strict=True))


class _Block(nn.Module):
    """Basic residual block (He et al., Deep Residual Learning, figure 2 and section 4.2)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(hidden)) + self.shortcut(x))


def _small_resnet(name: str, depth: int, width: int, size: int) -> nn.Module:
    """Builds three stages of (depth - 2) / 6 blocks, as in He et al.'s CIFAR networks. The first stage
    has `width` channels, each later one twice as many.

    The stem reduces the image to 12 to 24 pixels a side before the first stage: in a short budget more
    epochs are worth more than more pixels.
    """
    # Multiples of eight fill the CPU's vector registers.
    if not 8 <= depth <= 110 or (depth - 2) % 6 or not 8 <= width <= 512 or width % 8:
        raise UserError(
            f"There is no encoder named '{name}'.",
            "small ResNets are resnetD-wW with D = 8, 14, 20, … 110 and W = 8, 16, 24, … 512.",
        )
    blocks = (depth - 2) // 6
    layers: list[nn.Module] = [
        nn.Conv2d(3, width, 3, 2 if size >= 24 else 1, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]
    layers += [nn.MaxPool2d(3, 2, 1) for limit in (48, 96, 192) if size > limit]
    inputs = width
    for stage in range(3):
        for block in range(blocks):
            outputs = width * 2**stage
            layers.append(_Block(inputs, outputs, 2 if stage > 0 and block == 0 else 1))
            inputs = outputs
    for module in nn.Sequential(*layers).modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def build_backbone(name: str, size: int) -> nn.Module:
    """Builds the backbone `name` with random weights for images of `size` pixels.

    Raises UserError if there is no such network or it cannot take that size.
    """
    if name in _REGISTERED:
        return _REGISTERED[name](size)
    if name.startswith(SPLIT) and not name.startswith(2 * SPLIT):
        return Halves(name.removeprefix(SPLIT), size)
    small = _SMALL_RESNET.fullmatch(name)
    if small:
        return _small_resnet(name, int(small[1]), int(small[2]), size)
    if name.startswith(timm_backbones.PREFIX):
        return timm_backbones.build(name, size)
    network = _torchvision_backbone(name.removeprefix(TORCHVISION_PREFIX), size)
    if size <= SMALL_IMAGE and not name.startswith(TORCHVISION_PREFIX):
        _small_image_stem(network)
    return network


def is_torchvision(name: str) -> bool:
    """Whether `name` is one of torchvision's networks, with or without the prefix."""
    import torchvision

    bare = name.removeprefix(TORCHVISION_PREFIX)
    return bare in torchvision.models.list_models(module=torchvision.models)


def _torchvision_backbone(name: str, size: int) -> nn.Module:
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        close = get_close_matches(name, [*known, "resnet8-w32", "resnet14-w32", "resnet20-w64"], n=3)
        raise UserError(
            f"There is no encoder named '{name}'.",
            f"did you mean {' or '.join(close)}?"
            if close
            else "known names are, for example, resnet8-w32, resnet18 and resnet50.",
        )
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": True}
    elif name.startswith(("vit_", "maxvit")):
        # The attention of these networks is built for one image size.
        options = {"image_size": size} if name.startswith("vit_") else {"input_size": (size, size)}
    try:
        network = torchvision.models.get_model(name, weights=None, **options)
    except (ValueError, AssertionError) as error:
        raise UserError(
            f"{name} cannot be built for images of {size} pixels ({' '.join(str(error).split())}).",
            "choose another size (--size 224 suits every network) or another encoder.",
        ) from None
    _remove_classifier(network)
    return network


def _remove_classifier(network: nn.Module) -> None:
    for attribute in ("fc", "classifier", "heads", "head"):
        if hasattr(network, attribute):
            classifier = getattr(network, attribute)
            if attribute == "classifier" and isinstance(classifier, nn.Sequential):
                # ConvNeXt and SqueezeNet have their last normalisation and pooling in here.
                kept = [m for m in classifier if not isinstance(m, (nn.Linear, nn.Dropout, nn.Conv2d))]
                has_pooling = any(isinstance(m, nn.AdaptiveAvgPool2d) for m in kept)
                has_norm = any(isinstance(m, nn.LayerNorm) for m in kept)
                keep = kept if has_pooling or has_norm else []
                setattr(network, attribute, nn.Sequential(*keep))
            else:
                setattr(network, attribute, nn.Identity())
            return


def _small_image_stem(network: nn.Module) -> None:
    """Gives the network a 3×3 stride-1 first convolution and no max-pool before the first block.

    A network whose first convolution has stride 1 or cuts the image into patches is left unchanged.
    """
    leaves = [(name, m) for name, m in network.named_modules() if not list(m.children())]
    first = next((name, m) for name, m in leaves if isinstance(m, nn.Conv2d))
    conv = first[1]
    assert isinstance(conv, nn.Conv2d)
    is_patchify = conv.kernel_size == conv.stride
    if conv.stride != (1, 1) and not is_patchify:
        stem = nn.Conv2d(conv.in_channels, conv.out_channels, 3, 1, 1, bias=conv.bias is not None)
        _replace(network, first[0], stem)
    for name, module in leaves[:4]:
        if isinstance(module, nn.MaxPool2d) and not is_patchify and conv.stride != (1, 1):
            _replace(network, name, nn.Identity())


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)
