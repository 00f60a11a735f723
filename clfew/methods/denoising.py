"""Denoising Autoencoder: restore an image from a damaged copy.

Vincent et al., Stacked Denoising Autoencoders: Learning Useful Representations in a Deep Network with a
Local Denoising Criterion, JMLR 2010 (sections 3.3 corruptions, 3.4 emphasis, 3.5 stacking). Here a
convolutional encoder is trained end to end, or stage by stage.

Shape suffixes: B images in the batch, S side in pixels, C channels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clfew.data.augment import Recipe
from clfew.data.to_device import to_device
from clfew.errors import UsageError
from clfew.group.tensors import largest, smallest, std, variance
from clfew.methods.base import Method, Pictures, crops_and_flips, decoder
from clfew.models.encoder import Encoder
from clfew.models.feature_maps import replaced
from clfew.training.batch import Batch

CORRUPTIONS = {"masking": 0.25, "salt-and-pepper": 0.25, "gaussian": 0.3}
"""The kinds of corruption, with their amounts: the fraction of pixels set to 0, the fraction set to 0 or
1, and the standard deviation of the noise."""
EMPHASIS = (1.0, 0.5)
"""The weights of errors where pixels were damaged and where they were not: restoring matters more than
copying (section 3.4, "double emphasis")."""


def corrupted(clean: Tensor, random_Bx2xHxW: Tensor, kind: str, amount: float) -> tuple[Tensor, Tensor]:
    """Returns a damaged copy of images or maps (B, C, H, W), and where it was damaged, (B, 1, H, W) of 0
    and 1.

    A pixel is damaged in all channels, because the other channels would give its value away.
    random_Bx2xHxW: uniform in [0, 1), two numbers for each pixel.
    """
    first, second = random_Bx2xHxW[:, :1], random_Bx2xHxW[:, 1:]
    if kind == "gaussian":  # By the Box-Muller transform.
        angle, length = 2 * math.pi * second, (-2 * (1 - first).clamp(min=1e-7).log()).sqrt()
        return clean + amount * length * torch.cos(angle), torch.ones_like(first)
    damaged = (first < amount).to(clean.dtype)
    value = (second < 0.5).to(clean.dtype) if kind == "salt-and-pepper" else 0.0
    return clean * (1 - damaged) + value * damaged, damaged


def emphasised(error: Tensor, damaged_Bx1xHxW: Tensor) -> Tensor:
    """Returns the mean over all values of α·(errors where damaged) + β·(errors elsewhere)."""
    weight = EMPHASIS[0] * damaged_Bx1xHxW + EMPHASIS[1] * (1 - damaged_Bx1xHxW)
    return (weight * error).mean()


def stage_at(progress: float, stages: int) -> int:
    """Returns which stage is trained at `progress`, so that each stage gets the same sum of learning
    rates of a cosine schedule."""
    done = progress + math.sin(math.pi * progress) / math.pi
    return min(stages - 1, int(done * stages))


class Denoising(Method):
    """A decoder restores the clean image from the encoder's last map. The loss is the cross-entropy of
    sigmoids, as for values in [0, 1] (section 2.2).

    corruption: "masking", "salt-and-pepper" or "gaussian". stacked: the stages are trained one after the
    other. Each learns to restore the output of the stage before it from a damaged copy of that output;
    earlier stages are not changed any more.
    """

    shows_whole_images = False

    crop_side = 1.0  # Whole images.

    def __init__(
        self,
        encoder: Encoder,
        recipe: Recipe,
        gentle: bool = False,
        corruption: str = "masking",
        stacked: bool = False,
    ) -> None:
        super().__init__(encoder, crops_and_flips(recipe), gentle)
        if corruption not in CORRUPTIONS:
            raise UsageError(
                f"--corruption {corruption} is not known.", f"choose {', '.join(CORRUPTIONS)}."
            )
        self.corruption, self.amount, self.stacked = corruption, CORRUPTIONS[corruption], stacked
        shapes = encoder.map_shapes()
        if stacked:
            before = [(3, encoder.size), *shapes[:-1]]
            self.decoders = nn.ModuleList(
                decoder(channels, wanted, side, end)
                for (channels, side), (wanted, end) in zip(shapes, before, strict=True)
            )
        else:
            channels, side = shapes[-1]
            self.decoders = nn.ModuleList([decoder(channels, 3, side, encoder.size)])

    def damage(self, clean: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        uniform = to_device(batch.random.uniform(100, 2 * clean.shape[2] * clean.shape[3]), clean.device)
        random_Bx2xHxW = uniform.view(-1, 2, *clean.shape[2:])
        return corrupted(clean, random_Bx2xHxW, self.corruption, self.amount)

    def damage_maps(self, clean: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Does the same to the maps of a stage. Their values are not in [0, 1], so the ends of the range
        are those of each channel, and the noise has each channel's standard deviation (that of images is
        about the amount of their noise)."""
        if self.corruption == "masking":
            return self.damage(clean, batch)
        dims = [0, 2, 3]
        if self.corruption == "gaussian":
            low, span = (
                torch.zeros_like(clean[:1, :, :1, :1]),
                std(clean, dims) / self.amount,
            )
        else:
            low = smallest(clean.amin(dims, keepdim=True))
            span = largest(clean.amax(dims, keepdim=True)) - low
        span = span.clamp(min=1e-6)
        damaged, where = self.damage((clean - low) / span, batch)
        return damaged * span + low, where

    def restored(self, damaged: Tensor) -> Tensor:
        """Returns the logits of the clean image's values."""
        maps = self.encoder.maps(self.encoder.prepare(damaged))
        return self.decoders[0](maps[0 if self.stacked else -1])

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        clean, stage = self.one_view(batch), stage_at(batch.progress, len(self.decoders))
        if stage > 0:
            return self.stage_loss(clean, stage, batch)
        damaged, where = self.damage(clean, batch)
        logits = self.restored(damaged).float()
        error = F.binary_cross_entropy_with_logits(logits, clean, reduction="none")
        squared = (logits.detach().sigmoid() - clean).square().mean()
        return emphasised(error, where), {"squared_error": squared}

    def stage_loss(self, clean: Tensor, stage: int, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the squared error of the maps that a later stage restores, those of the stage before
        it, as a multiple of their variance."""
        # `damage` runs inside the encoder's forward pass, so it hands its results over in this dict.
        kept: dict[str, Tensor] = {}

        def damage(below: Tensor) -> Tensor:
            kept["clean"] = below.detach()
            damaged, kept["where"] = self.damage_maps(kept["clean"], batch)
            return damaged

        with replaced(self.encoder.stage_module(stage - 1), damage):
            above = self.encoder.maps(self.encoder.prepare(clean))[stage]
        target = kept["clean"].float()
        spread = variance(target, [0, 1, 2, 3]).clamp(min=1e-6)
        error = (self.decoders[stage](above).float() - target).square() / spread
        loss = emphasised(error, kept["where"])
        return loss, {"squared_error": error.detach().mean()}

    @torch.no_grad()
    def pictures(self, batch: Batch) -> Pictures:
        clean = self.one_view(batch)
        damaged, _ = self.damage(clean, batch)
        restored = self.restored(damaged).float().sigmoid()
        return [("image", clean), ("damaged", damaged.clamp(0, 1)), ("restored", restored)]
