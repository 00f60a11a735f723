"""Split-Brain Autoencoder: half of a network predicts colours from lightness, the other the reverse.

Zhang, Isola and Efros, Split-Brain Autoencoders: Unsupervised Learning by Cross-Channel Prediction, CVPR
2017 (section 3, with classification losses in place of regression).

Shape suffixes: B images in the batch, H and W of a map, Q colour bins, L lightness bins.
"""

import re

import torch
import torch.nn.functional as F
from torch import Tensor

from clfew.data.augment import Recipe
from clfew.data.colour import lab_to_rgb, rgb_to_lab
from clfew.methods.base import Method, Pictures, crops_and_flips, decoder
from clfew.methods.colorization import annealed_mean, colour_bins, colours_of, reduced_side
from clfew.models.backbones import SPLIT, Halves
from clfew.models.encoder import LAB, Encoder
from clfew.training.batch import Batch

LIGHTNESS_BINS = 100


def cross_channel_loss(
    colour_BxQxHxW: Tensor, light_BxLxHxW: Tensor, lab_Bx3xHxW: Tensor, bins_Qx2: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns two cross-entropies: of the bin nearest to each pixel's colour, which is predicted from
    lightness, and of the pixel's lightness in hundredths, which is predicted from colour."""
    ab = lab_Bx3xHxW[:, 1:].permute(0, 2, 3, 1)
    with torch.autocast(ab.device.type, enabled=False):
        nearest = torch.cdist(ab.flatten(0, 2), bins_Qx2).argmin(1).view(ab.shape[:3])
    level = (lab_Bx3xHxW[:, 0] * LIGHTNESS_BINS / 100).long().clamp(0, LIGHTNESS_BINS - 1)
    return F.cross_entropy(colour_BxQxHxW.float(), nearest), F.cross_entropy(
        light_BxLxHxW.float(), level
    )


class SplitBrain(Method):
    """Two networks beside each other, each with half the channels. Networks such as resnet18 cannot be
    halved; for these there are two whole ones. The features are those of both networks side by side."""

    input = LAB

    # Crops of 227 pixels from images of 256, as AlexNet's are; the authors' training is not published.
    crop_side = 227 / 256

    def __init__(self, encoder: Encoder, recipe: Recipe, gentle: bool = False) -> None:
        super().__init__(encoder, crops_and_flips(recipe), gentle)
        self.bins: Tensor
        self.register_buffer("bins", torch.zeros(1, 2))
        self.reduced = reduced_side(encoder)
        self.tells_colour = self._decoder(1)
        self.tells_light = self._decoder(LIGHTNESS_BINS)

    @staticmethod
    def encoder_name(name: str) -> str:
        small = re.fullmatch(r"(resnet\d+-w)(\d+)", name)
        if small and int(small[2]) % 16 == 0:
            name = f"{small[1]}{int(small[2]) // 2}"
        return name if name.startswith(SPLIT) else SPLIT + name

    def _decoder(self, outputs: int) -> torch.nn.Sequential:
        channels_of_both, side = self.encoder.map_shapes()[-1]
        return decoder(channels_of_both // 2, outputs, side, self.reduced)

    def look_at(self, images_NxSxSx3: Tensor, aspects_N: Tensor) -> None:
        """Makes the colours of these images the bins."""
        self.bins, _ = colour_bins(colours_of(images_NxSxSx3, aspects_N, self.reduced))
        self.tells_colour = self._decoder(len(self.bins)).to(self.bins.device)

    def view(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns views, and their L, a, b at the resolution at which they are predicted."""
        view = self.one_view(batch)
        return view, rgb_to_lab(F.adaptive_avg_pool2d(view, self.reduced))

    def logits(self, view_BxCxSxS: Tensor) -> tuple[Tensor, Tensor]:
        backbone = self.encoder.backbone
        assert isinstance(backbone, Halves)
        light, colour = backbone.maps_of_both(self.encoder.prepare(view_BxCxSxS))[-1]
        return self.tells_colour(light), self.tells_light(colour)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        view, lab = self.view(batch)
        colour_loss, light_loss = cross_channel_loss(*self.logits(view), lab, self.bins)
        return colour_loss + light_loss, {
            "colour": colour_loss.detach(),
            "lightness": light_loss.detach(),
        }

    @torch.no_grad()
    def pictures(self, batch: Batch) -> Pictures:
        view, _ = self.view(batch)
        colour, light = self.logits(view)

        def enlarged(maps: Tensor) -> Tensor:
            return F.interpolate(maps, view.shape[2:], mode="bilinear")

        ab = enlarged(annealed_mean(colour, self.bins))
        levels = (torch.arange(LIGHTNESS_BINS, device=view.device) + 0.5) * 100 / LIGHTNESS_BINS
        brightness = torch.einsum("blhw,l->bhw", light.float().softmax(1), levels)[:, None]
        lab = rgb_to_lab(view)
        return [
            ("image", view),
            ("predicted colours", lab_to_rgb(torch.cat([lab[:, :1], ab], dim=1))),
            ("predicted lightness", lab_to_rgb(torch.cat([enlarged(brightness), lab[:, 1:]], dim=1))),
        ]
