"""Context Encoders: paint the missing part of an image.

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
from clfew.data.to_device import to_device
from clfew.errors import UsageError
from clfew.methods.base import Method, Pictures, crops_and_flips, decoder
from clfew.models.encoder import Encoder
from clfew.training.batch import Batch

MASKS = ("random", "centre")
OVERLAP, OVERLAP_WEIGHT = 4 / 128, 10.0
"""The width of the centre square's border, as a fraction of the side, and the weight of its errors. The
border is both in the input and painted, so that the painting fits its surroundings."""
CELLS, THRESHOLD, LEAST, MOST = 8, 0.25, 0.2, 0.3
"""How random regions are made: noise on CELLS cells a side (the code has 0.06 cells a pixel, at 128
pixels) is enlarged, and masks the image where it is below THRESHOLD. A mask is used if it covers a
fraction between LEAST and MOST of the image."""
TRIES = 64
RECONSTRUCTION, ADVERSARIAL = 0.999, 0.001


def centre_mask(size: int) -> tuple[Tensor, Tensor]:
    """Returns the mask of hidden pixels and the weight of each pixel's error, (S, S) each. The square to
    paint has half the side of the image."""
    border = max(1, round(OVERLAP * size))
    low, high = size // 4, size - size // 4
    hidden, weight = torch.zeros(size, size), torch.zeros(size, size)
    weight[low:high, low:high] = OVERLAP_WEIGHT
    inside = slice(low + border, high - border)
    weight[inside, inside] = 1
    hidden[inside, inside] = 1
    return hidden, weight


def random_mask(size: int, random_TxN: np.ndarray) -> Tensor:
    """Returns a random region, (S, S) of 0 and 1: of several tries the first with a good size, or else
    the one closest to it. random_TxN: uniform in [0, 1), CELLS² numbers for each try."""
    noise = torch.from_numpy(random_TxN).view(-1, 1, CELLS, CELLS)
    fields = F.interpolate(noise, size=(size, size), mode="bicubic", align_corners=False)[:, 0]
    masks = (fields < THRESHOLD).float()
    distance = (masks.mean((1, 2)) - (LEAST + MOST) / 2).abs()
    good = distance <= (MOST - LEAST) / 2
    return masks[int(good.int().argmax()) if good.any() else int(distance.argmin())]


class Inpainting(Method):
    """From the encoder's last map, a layer that connects places channel by channel and a decoder paint
    the hidden part.

    mask: "random" for random regions, one a batch, or "centre" for the centre square. adversarial: also
    trains a discriminator to tell paintings from images (equation 2). It is trained in the same step and
    at the same learning rate as the painter (the encoder and the layers after it); the paper has two
    steps, the painter's ten times as large. The paper's features were learned without it.

    The authors' code crops 128 pixels from images of 350. Here crops are of random area: on
    Fashion-MNIST, crops of that scale made features that were 3 points worse, on aerial photographs 3
    points better (examples/benchmarks/crops.py).
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
        nn.init.uniform_(self.places, -1 / side, 1 / side)  # As nn.Linear does with side² inputs.
        self.decoder = nn.Sequential(
            nn.Conv2d(channels, channels, 1), decoder(channels, 3, side, encoder.size)
        )
        judged = encoder.size // 2 if mask == "centre" else encoder.size
        self.discriminator = _discriminator(judged) if adversarial else None

    def view(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Returns views prepared for the encoder, the mask of hidden pixels, and the weights of
        errors."""
        view = self.encoder.prepare(self.one_view(batch))
        if self.mask == "centre":
            hidden, weight = centre_mask(self.encoder.size)
        else:  # One mask for all images of a batch, made from the first image's random numbers.
            hidden = random_mask(self.encoder.size, batch.random.once(100, TRIES * CELLS**2))
            # The discriminator gets the whole painting, so all of it has to be like the image.
            weight = hidden if self.discriminator is None else torch.ones_like(hidden)
        device = view.device
        return view, to_device(hidden.numpy(), device), to_device(weight.numpy(), device)

    def painted(self, view_BxCxSxS: Tensor, hidden_SxS: Tensor) -> Tensor:
        """Returns whole images painted from what is not hidden, in the encoder's normalised colours.
        Hidden pixels are 0 in the input, which is the mean colour."""
        maps = self.encoder.maps(view_BxCxSxS * (1 - hidden_SxS))[-1]
        joined = torch.einsum("bcp,cpq->bcq", maps.flatten(2), self.places.to(maps.dtype))
        return self.decoder(joined.view_as(maps))

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        view, hidden, weight = self.view(batch)
        painted = self.painted(view, hidden).float()
        loss = reconstruction_loss(painted, view, weight)
        extras = {"squared_error": loss.detach()}
        if self.discriminator is not None:
            painter_loss, real, fake = self.judgement(self.judged(view), self.judged(painted))
            right = torch.cat([real > 0, fake < 0]).float().mean()
            its_loss = judge_loss(real, fake)
            extras |= {"judged_right": right, "judge_loss": its_loss.detach()}
            loss = RECONSTRUCTION * loss + ADVERSARIAL * painter_loss + its_loss
        return loss, extras

    def judged(self, images: Tensor) -> Tensor:
        """Returns the part of images or paintings that the discriminator gets: all that was painted, and
        nothing around it, because the border would give the painting away (section 3.2)."""
        if self.mask == "random":
            return images
        low, high = self.encoder.size // 4, self.encoder.size - self.encoder.size // 4
        return images[..., low:high, low:high]

    def judgement(self, real: Tensor, painted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the painter's loss, which trains the painter only, and the discriminator's logits of
        real and of painted images.

        Real and painted images are batches of their own, for the discriminator as for the painter (as in
        DCGAN): in a common batch, BatchNorm would compare them, and the painter would be judged by
        other statistics than the discriminator is trained with.
        """
        assert self.discriminator is not None
        # Detached weights and copied buffers: the painter's loss must not change the discriminator.
        fixed = {n: p.detach() for n, p in self.discriminator.named_parameters()}
        buffers = {n: b.clone() for n, b in self.discriminator.named_buffers()}
        fooled = functional_call(self.discriminator, {**fixed, **buffers}, (painted,)).float()
        logits = [self.discriminator(images).float() for images in (real, painted.detach())]
        painter_loss = F.binary_cross_entropy_with_logits(fooled, torch.ones_like(fooled))
        return painter_loss, *logits

    @torch.no_grad()
    def pictures(self, batch: Batch) -> Pictures:
        view, hidden, _ = self.view(batch)
        painted = view * (1 - hidden) + self.painted(view, hidden).float() * hidden

        def shown(images: Tensor) -> Tensor:
            return (images * self.encoder.std + self.encoder.mean).clamp(0, 1)

        return [
            ("input", shown(view * (1 - hidden))),
            ("painted", shown(painted)),
            ("image", shown(view)),
        ]


def reconstruction_loss(painted: Tensor, image: Tensor, weight_SxS: Tensor) -> Tensor:
    """Returns the squared error averaged with these weights over the painted pixels (equation 1)."""
    total = weight_SxS.sum() * painted.shape[0] * painted.shape[1]
    return (weight_SxS * (painted - image).square()).sum() / total.clamp(min=1)


def judge_loss(real: Tensor, painted: Tensor) -> Tensor:
    """Returns the discriminator's loss from its logits of real and of painted images (equation 2)."""
    one, zero = torch.ones_like(real), torch.zeros_like(painted)
    return F.binary_cross_entropy_with_logits(torch.cat([real, painted]), torch.cat([one, zero]))


def _discriminator(size: int) -> nn.Sequential:
    """Returns convolutions of stride 2, down to about 4 pixels, as in DCGAN (section 3.2, figure 9)."""
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
