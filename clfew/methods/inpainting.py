"""Context Encoders: paint the part of an image that is missing.

Pathak et al., Context Encoders: Feature Learning by Inpainting, CVPR 2016 (section 3; the
centre's mask and weights as in its code, pathak22/context-encoder).

Shape suffixes: B images in the batch, S side in pixels, C channels.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from clfew.data.augment import Recipe
from clfew.errors import UsageError
from clfew.methods.base import Method, Pictures, crops_and_flips, decoder
from clfew.models.encoder import Encoder
from clfew.training.batch import Batch

MASKS = ("random", "centre")
OVERLAP, OVERLAP_WEIGHT = 4 / 128, 10.0
"""The border of the centre square that is seen as well as painted, in shares of the side, and what its
errors weigh: so the painting joins what is around it."""
CELLS, THRESHOLD, LEAST, MOST = 8, 0.25, 0.2, 0.3
"""Of random regions: noise on so many cells a side (the code's 0.06 a pixel at 128 pixels), enlarged;
masked below the threshold; taken where that is a share between LEAST and MOST of the image."""
TRIES = 64
RECONSTRUCTION, ADVERSARIAL = 0.999, 0.001


def centre_mask(size: int) -> tuple[Tensor, Tensor]:
    """What is hidden, and the weight of each pixel's error: (S, S) each. The square to paint has half
    the side."""
    border = max(1, round(OVERLAP * size))
    low, high = size // 4, size - size // 4
    hidden, weight = torch.zeros(size, size), torch.zeros(size, size)
    weight[low:high, low:high] = OVERLAP_WEIGHT
    inside = slice(low + border, high - border)
    weight[inside, inside] = 1
    hidden[inside, inside] = 1
    return hidden, weight


def random_mask(size: int, draws_TxN: np.ndarray) -> Tensor:
    """A random region, (S, S) of 0 and 1: of several tries the first of a good size, else the one
    closest to it. draws: uniform in [0, 1), CELLS² for each try."""
    noise = torch.from_numpy(draws_TxN).view(-1, 1, CELLS, CELLS)
    fields = F.interpolate(noise, size=(size, size), mode="bicubic", align_corners=False)[:, 0]
    masks = (fields < THRESHOLD).float()
    distance = (masks.mean((1, 2)) - (LEAST + MOST) / 2).abs()
    good = distance <= (MOST - LEAST) / 2
    return masks[int(good.int().argmax()) if good.any() else int(distance.argmin())]


class Inpainting(Method):
    """The encoder's last map, a layer that joins places channel by channel, and a decoder that paints.

    mask: "random" regions, one a batch, or the "centre" square. adversarial: a discriminator judges the
    paintings (equation 2); its gradient and the painter's come from one step at one learning rate, where
    the paper has two steps, the painter's ten times as large. The paper's features were learned without
    it.
    """

    shows_whole_images = False

    def __init__(
        self,
        encoder: Encoder,
        recipe: Recipe,
        gentle: bool = False,
        mask: str = "random",
        adversarial: bool = False,
    ) -> None:
        super().__init__(encoder, crops_and_flips(recipe), gentle)
        if mask not in MASKS:
            raise UsageError(f"--mask {mask} is not known.", f"choose {' or '.join(MASKS)}.")
        self.mask = mask
        channels, side = encoder.map_shapes()[-1]
        # Section 3.1, "channel-wise fully-connected layer": a matrix from places to places for each
        # channel, then a 1×1 convolution, in place of the bottleneck of 4000.
        self.places = nn.Parameter(torch.empty(channels, side**2, side**2))
        nn.init.uniform_(self.places, -1 / side, 1 / side)  # As of a linear layer from so many places.
        self.decoder = nn.Sequential(
            nn.Conv2d(channels, channels, 1), decoder(channels, 3, side, encoder.size)
        )
        judged = encoder.size // 2 if mask == "centre" else encoder.size
        self.discriminator = _discriminator(judged) if adversarial else None

    def view(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """A view as the encoder is given it, what of it is hidden, and the weights of errors."""
        view = self.encoder.prepare(self.one_view(batch))
        if self.mask == "centre":
            hidden, weight = centre_mask(self.encoder.size)
        else:  # One for all images of a batch, drawn by the first one's numbers.
            hidden = random_mask(self.encoder.size, batch.random.once(100, TRIES * CELLS**2))
            # Where a judge sees all of the painting, all of it is to be like the image.
            weight = hidden if self.discriminator is None else torch.ones_like(hidden)
        return view, hidden.to(view.device), weight.to(view.device)

    def painted(self, view_BxCxSxS: Tensor, hidden_SxS: Tensor) -> Tensor:
        """A whole image from what is not hidden, in the encoder's normalised colours: 0 where nothing is
        seen, which is the mean colour."""
        maps = self.encoder.maps(view_BxCxSxS * (1 - hidden_SxS))[-1]
        joined = torch.einsum("bcp,cpq->bcq", maps.flatten(2), self.places.to(maps.dtype))
        return self.decoder(joined.view_as(maps))

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        view, hidden, weight = self.view(batch)
        painted = self.painted(view, hidden).float()
        loss = reconstruction_loss(painted, view, weight)
        extras = {"squared_error": loss.detach()}
        if self.discriminator is not None:
            fools, judges = self.adversarial_losses(self.judged(view), self.judged(painted))
            extras["judged_right"] = judges.detach()
            loss = RECONSTRUCTION * loss + ADVERSARIAL * fools + judges
        return loss, extras

    def judged(self, images: Tensor) -> Tensor:
        """What of an image or a painting the discriminator sees: all that was painted, and nothing of
        the image itself around it, whose border would give the painting away (section 3.2)."""
        if self.mask == "random":
            return images
        low, high = self.encoder.size // 4, self.encoder.size - self.encoder.size // 4
        return images[..., low:high, low:high]

    def adversarial_losses(self, real: Tensor, painted: Tensor) -> tuple[Tensor, Tensor]:
        """The painter's loss, which only moves the painter, and the discriminator's own."""
        assert self.discriminator is not None
        fixed = {n: p.detach() for n, p in self.discriminator.named_parameters()}
        buffers = {n: b.clone() for n, b in self.discriminator.named_buffers()}
        fooled = functional_call(self.discriminator, {**fixed, **buffers}, (painted,)).float()
        answers = self.discriminator(torch.cat([real, painted.detach()])).float()
        truth = torch.zeros_like(answers)
        truth[: len(real)] = 1
        painter = F.binary_cross_entropy_with_logits(fooled, torch.ones_like(fooled))
        return painter, F.binary_cross_entropy_with_logits(answers, truth)

    @torch.no_grad()
    def pictures(self, batch: Batch) -> Pictures:
        view, hidden, _ = self.view(batch)
        painted = view * (1 - hidden) + self.painted(view, hidden).float() * hidden

        def shown(images: Tensor) -> Tensor:
            return (images * self.encoder.std + self.encoder.mean).clamp(0, 1)

        return [
            ("seen", shown(view * (1 - hidden))),
            ("painted", shown(painted)),
            ("image", shown(view)),
        ]


def reconstruction_loss(painted: Tensor, image: Tensor, weight_SxS: Tensor) -> Tensor:
    """Squared error where there is a weight, by weight (equation 1): the mean over what is painted."""
    total = weight_SxS.sum() * painted.shape[0] * painted.shape[1]
    return (weight_SxS * (painted - image).square()).sum() / total.clamp(min=1)


def _discriminator(size: int) -> nn.Sequential:
    """Convolutions of stride 2 down to about 4 pixels, as DCGAN's (section 3.2, figure 9)."""
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 4, 2, 1), nn.LeakyReLU(0.2)]
    side, width = size // 2, 32
    while side > 4 and width < 256:
        layers += [
            nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.LeakyReLU(0.2),
        ]
        side, width = side // 2, 2 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1))
