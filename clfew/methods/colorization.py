"""Colorization: predict the colours of an image from its lightness.

Zhang, Isola and Efros, Colorful Image Colorization, ECCV 2016 (equations 1 to 5).

Shape suffixes: B images in the batch, H and W of a map, Q colour bins.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clfew.data.augment import Recipe, evaluation_view
from clfew.data.colour import lab_to_rgb, rgb_to_lab
from clfew.group.tensors import mean_where
from clfew.methods.base import Method, Pictures, crops_and_flips, decoder
from clfew.models.encoder import LIGHTNESS, Encoder
from clfew.training.batch import Batch

GRID = 10.0
"""The width of a colour bin in units of a and b."""
NEAREST, SIGMA = 5, 5.0
"""Each colour is assigned to its NEAREST bins, weighted by a Gaussian of width SIGMA (section 2.1)."""
UNIFORM = 0.5
"""λ: the weight of the uniform distribution that is mixed into that of the colours (equation 4)."""
TEMPERATURE = 0.38
"""The temperature of the annealed mean (equation 5)."""
GREY_BELOW = 5.0
"""An image in which no pixel has |a| or |b| above this has no colours to learn."""
REDUCED = 4
"""Colours are predicted at a quarter of the resolution."""


def colours_of(images_NxSxSx3: Tensor, aspects_N: Tensor, side: int) -> Tensor:
    """Returns the a and b of all pixels of cached images resized to `side` pixels: (pixels, 2)."""
    lab = rgb_to_lab(evaluation_view(images_NxSxSx3, aspects_N, side))
    return lab[:, 1:].permute(0, 2, 3, 1).reshape(-1, 2)


def colour_bins(ab_Nx2: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the centres (Q, 2) of the grid's cells that hold at least one of these colours, and the
    fraction of the colours in each cell (Q,)."""
    cells, counts = torch.round(ab_Nx2 / GRID).unique(dim=0, return_counts=True)
    return cells * GRID, counts / counts.sum()


def rebalancing(bins_Qx2: Tensor, fractions_Q: Tensor) -> Tensor:
    """Returns the weights of the bins, w ∝ ((1 - λ) p̃ + λ / Q)⁻¹ with Σ p̃ w = 1, where p̃ are the
    smoothed fractions of the colours (equation 4).

    Most pixels of most images are nearly grey: without weights all predictions would be nearly grey too.
    """
    kernel = torch.exp(-torch.cdist(bins_Qx2, bins_Qx2).square() / (2 * SIGMA**2))
    smooth = (kernel / kernel.sum(0)) @ fractions_Q
    weight = 1 / ((1 - UNIFORM) * smooth / smooth.sum() + UNIFORM / len(bins_Qx2))
    return weight / (weight * smooth / smooth.sum()).sum()


def soft_bins(ab_Nx2: Tensor, bins_Qx2: Tensor) -> tuple[Tensor, Tensor]:
    """Returns each colour's nearest bins, (N, 5), and its probability for each of them, (N, 5)."""
    # 2 x·c - |c|² is -|x - c|² plus |x|², which is the same for all bins. In bf16 its rounding errors
    # would be as large as whole bins.
    with torch.autocast(ab_Nx2.device.type, enabled=False):
        closeness = 2 * ab_Nx2.float() @ bins_Qx2.T - bins_Qx2.square().sum(1)
    near, index = closeness.topk(min(NEAREST, len(bins_Qx2)), dim=1)
    return index, torch.softmax(near / (2 * SIGMA**2), dim=1)


def colour_loss(
    logits_BxQxHxW: Tensor, ab_Bx2xHxW: Tensor, bins_Qx2: Tensor, weights_Q: Tensor
) -> Tensor:
    """Returns -Σ v(Z) Σ_q Z_q log Ẑ_q, averaged over the pixels of images that have colours
    (equation 2)."""
    predicted = logits_BxQxHxW.float().log_softmax(1).permute(0, 2, 3, 1).flatten(0, 2)
    index, probabilities = soft_bins(ab_Bx2xHxW.permute(0, 2, 3, 1).reshape(-1, 2), bins_Qx2)
    error = -(probabilities * predicted.gather(1, index)).sum(1)
    # The nearest bin, which decides the weight of a pixel, comes first.
    weighted = (weights_Q[index[:, 0]] * error).view(len(ab_Bx2xHxW), -1)
    has_colour = (ab_Bx2xHxW.abs() > GREY_BELOW).flatten(1).any(1)
    return mean_where(weighted.mean(1), has_colour)


def reduced_side(encoder: Encoder) -> int:
    """Returns the side of the maps of predicted colours, which is at least that of the encoder's last
    maps."""
    return max(encoder.map_shapes()[-1][1], encoder.size // REDUCED)


def annealed_mean(logits_BxQxHxW: Tensor, bins_Qx2: Tensor) -> Tensor:
    """Returns the mean of the predicted colours at TEMPERATURE: (B, 2, H, W) (equation 5)."""
    with torch.autocast(logits_BxQxHxW.device.type, enabled=False):
        probabilities = (logits_BxQxHxW.float() / TEMPERATURE).softmax(1)
        return torch.einsum("bqhw,qc->bchw", probabilities, bins_Qx2)


class Colorization(Method):
    """The encoder gets only the lightness of images, both here and in later use. A decoder on its last
    map predicts the colour of each place."""

    input = LIGHTNESS

    crop_side = 176 / 256  # Crops of 176 pixels from images of 256, as in the authors' code.

    def __init__(self, encoder: Encoder, recipe: Recipe, gentle: bool = False) -> None:
        super().__init__(encoder, crops_and_flips(recipe), gentle)
        self.bins: Tensor
        self.weights: Tensor
        self.register_buffer("bins", torch.zeros(1, 2))
        self.register_buffer("weights", torch.ones(1))
        self.reduced = reduced_side(encoder)
        self.decoder = self.build_decoder(1)

    def build_decoder(self, outputs: int) -> nn.Sequential:
        channels, side = self.encoder.map_shapes()[-1]
        return decoder(channels, outputs, side, self.reduced)

    def look_at(self, images_NxSxSx3: Tensor, aspects_N: Tensor) -> None:
        """Makes the colours of these images the bins."""
        self.bins, fractions = colour_bins(colours_of(images_NxSxSx3, aspects_N, self.reduced))
        self.weights = rebalancing(self.bins, fractions)
        self.decoder = self.build_decoder(len(self.bins)).to(self.bins.device)

    def view(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns views, and their L, a, b at the resolution at which colours are predicted."""
        view = self.one_view(batch)
        return view, rgb_to_lab(F.adaptive_avg_pool2d(view, self.reduced))

    def logits(self, view_BxCxSxS: Tensor) -> Tensor:
        return self.decoder(self.encoder.maps(self.encoder.prepare(view_BxCxSxS))[-1])

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        view, lab = self.view(batch)
        logits = self.logits(view).float()
        loss = colour_loss(logits, lab[:, 1:], self.bins, self.weights)
        error = (annealed_mean(logits.detach(), self.bins) - lab[:, 1:]).square().sum(1).sqrt().mean()
        return loss, {"colour_error": error}

    @torch.no_grad()
    def pictures(self, batch: Batch) -> Pictures:
        view, _ = self.view(batch)
        ab = F.interpolate(annealed_mean(self.logits(view), self.bins), view.shape[2:], mode="bilinear")
        lightness = rgb_to_lab(view)[:, :1]
        grey = lab_to_rgb(torch.cat([lightness, torch.zeros_like(ab)], dim=1))
        coloured = lab_to_rgb(torch.cat([lightness, ab], dim=1))
        return [("without colour", grey), ("colourised", coloured), ("image", view)]
