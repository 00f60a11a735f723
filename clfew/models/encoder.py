"""Encoders: networks that turn an image into a feature vector. `clfew.models.backbones` lists the
names."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clfew.data.colour import AB_REACH, rgb_to_lab
from clfew.errors import UserError
from clfew.models.backbones import Halves, build_backbone
from clfew.models.feature_maps import feature_maps, output_shapes, stage_modules
from clfew.models.metadata import INPUTS

RGB, LIGHTNESS, LAB = INPUTS


def as_input(images_NxCxHxW: Tensor, input: str) -> Tensor:
    """Converts RGB images in [0, 1] to an encoder's input, three channels in [0, 1].

    input: "rgb" leaves the images as they are. "lightness" puts CIE L into all three channels, for an
    encoder that was trained to predict colours. "lab" gives CIE L, a and b.
    """
    if input == RGB:
        return images_NxCxHxW
    lab = rgb_to_lab(images_NxCxHxW)
    if input == LIGHTNESS:
        return (lab[:, :1] / 100).expand(-1, 3, -1, -1)
    return torch.cat([lab[:, :1] / 100, (lab[:, 1:] + AB_REACH) / (2 * AB_REACH)], dim=1)


class Encoder(nn.Module):
    """A backbone with its input normalisation.

    Takes images in [0, 1] of shape (N, 3, size, size), returns features of shape (N, dim).

    mean, std: mean and standard deviation of the three channels of the input. adapter: width of a linear
    layer beside the backbone's own features (see `SideLayer`), 0 for none. input: the form in which the
    backbone gets the images (see `as_input`). stage: the stage whose feature maps are averaged to
    features, counted from 1 at the image; 0 takes the backbone's own features.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        size: int,
        mean: list[float],
        std: list[float],
        adapter: int = 0,
        input: str = RGB,
        stage: int = 0,
    ) -> None:
        super().__init__()
        self.name, self.size, self.input, self.stage = name, size, input, stage
        self.backbone = build_backbone(name, size)
        self._stages: list[str] | None = None
        # Not saved with the weights: an artifact has them in its metadata.
        for key, values in (("mean", mean), ("std", std)):
            channels = torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1)
            self.register_buffer(key, channels, persistent=False)
        self.dim = _feature_dim(self.backbone, name, size)
        if stage:
            self.dim = _stage_dim(self, stage)
        self.adapter: SideLayer | None = None
        if adapter:
            self.adapter = SideLayer(self.dim, adapter)
            self.dim = self.adapter.dim

    def forward(self, images_NxCxSxS: Tensor) -> Tensor:
        return self.adapt(self.backbone_features(images_NxCxSxS))

    def adapt(self, features_NxD: Tensor) -> Tensor:
        """Computes the encoder's features from those of the backbone."""
        return features_NxD if self.adapter is None else self.adapter(features_NxD)

    def without_adapter(self) -> "Encoder":
        """Returns a copy whose features are the backbone's, or the encoder itself if it has no
        adapter."""
        if self.adapter is None:
            return self
        plain = copy.deepcopy(self)
        plain.adapter, plain.dim = None, self.adapter.inputs
        return plain

    def read_at(self, stage: int) -> "Encoder":
        """Returns a copy whose features are the mean of the feature maps of stage `stage`, counted from
        1. Raises UserError if there is no such stage."""
        plain = copy.deepcopy(self.without_adapter())
        plain.stage, plain.dim = stage, _stage_dim(plain, stage)
        return plain

    def backbone_features(self, images_NxCxSxS: Tensor) -> Tensor:
        """Computes the features before the adapter."""
        inputs = self.prepare(images_NxCxSxS)
        if self.stage:
            return self.maps(inputs)[self.stage - 1].mean((2, 3))
        return self.backbone(inputs).flatten(1)

    def prepare(self, images_NxCxSxS: Tensor) -> Tensor:
        """Converts images to the backbone's input: as `self.input` names, then normalised."""
        return (as_input(images_NxCxSxS, self.input) - self.mean) / self.std

    def maps(self, inputs_NxCxSxS: Tensor) -> list[Tensor]:
        """Computes the feature maps of each stage for prepared images, (N, C, H, W); see
        `clfew.models.feature_maps`."""
        if isinstance(self.backbone, Halves):
            return [torch.cat(pair, dim=1) for pair in self.backbone.maps_of_both(inputs_NxCxSxS)]
        return feature_maps(self.backbone, self.stage_names(), inputs_NxCxSxS)

    def map_shapes(self) -> list[tuple[int, int]]:
        """Returns the channels and the side of the feature maps of each stage."""
        return [(m.shape[1], m.shape[2]) for m in output_shapes(_Maps(self), self.size)]

    def stage_names(self) -> list[str]:
        """Returns the names of the backbone's modules that end its stages."""
        if self._stages is None:
            self._stages = stage_modules(self.backbone, self.size)
        return self._stages

    def stage_module(self, number: int) -> nn.Module:
        """Returns the module that ends stage `number`, counted from 0."""
        return self.backbone.get_submodule(self.stage_names()[number])


class _Maps(nn.Module):
    """`Encoder.maps` as the forward of a module, as `output_shapes` needs it."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, inputs_NxCxSxS: Tensor) -> list[Tensor]:
        return self.encoder.maps(inputs_NxCxSxS)


class SideLayer(nn.Module):
    """Maps features (N, inputs) to about twice as many (N, dim): the standardised features, and beside
    them the output of a linear layer of `width`, repeated until it has about as many numbers.

    Each half is a unit vector, so the cosine similarity of two images is the mean of that of both
    halves. Alone, the linear layer's features were worse than the encoder's own if those already suited
    the images (aerial photographs), and better if they did not (hand signs, CIFAR-10). Both together
    were close to the better of the two everywhere, on held-out parts of the training splits.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.inputs = inputs
        self.linear = nn.Linear(inputs, width)
        self.register_buffer("centre", torch.zeros(inputs))
        # The standard deviation of each feature; saved encoders have it under this name.
        self.register_buffer("spread", torch.ones(inputs))
        self.copies = max(1, round(inputs / width))
        self.dim = inputs + self.copies * width

    def forward(self, features_NxD: Tensor) -> Tensor:
        own = F.normalize((features_NxD - self.centre) / self.spread, dim=1)
        learned = F.normalize(self.linear(features_NxD), dim=1) / self.copies**0.5
        return torch.cat([own, learned.repeat(1, self.copies)], dim=1)


def freeze_statistics(module: nn.Module) -> None:
    """Puts every BatchNorm layer in `module` into eval mode: it uses its running statistics and does not
    update them."""
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.eval()


def freeze_first(module: nn.Module, fraction: float) -> None:
    """Excludes the first `fraction` of the weight tensors, in the order of the network, from
    training."""
    parameters = list(module.parameters())
    for parameter in parameters[: round(fraction * len(parameters))]:
        parameter.requires_grad_(False)


def _feature_dim(backbone: nn.Module, name: str, size: int) -> int:
    """Returns the backbone's number of features. Raises UserError if it cannot take images of `size`
    pixels."""
    try:
        features: Tensor = output_shapes(backbone, size)
        return features.flatten(1).shape[1]
    except RuntimeError as error:
        raise UserError(
            f"{name} cannot take images of {size} pixels ({str(error).splitlines()[0]}).",
            "choose a larger size, --size 224 suits every network.",
        ) from None


def _stage_dim(encoder: Encoder, stage: int) -> int:
    """Returns the number of channels of a stage's feature maps. Raises UserError if there is no such
    stage."""
    shapes = encoder.map_shapes()
    if stage > len(shapes):
        raise UserError(
            f"{encoder.name} has {len(shapes)} stages, there is no stage {stage}.",
            f"choose one of 1 to {len(shapes)}, or leave out --stage for the network's own features.",
        )
    return shapes[stage - 1][0]
