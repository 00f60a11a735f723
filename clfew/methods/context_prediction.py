"""Context Prediction: predict where one patch of an image lies relative to another.

Doersch, Gupta and Efros, Unsupervised Visual Representation Learning by Context Prediction, ICCV 2015
(section 3; proportions as in its code, deepcontext).

Shape suffixes: B images in the batch, D features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clfew.data.augment import Recipe, resampling_matrix
from clfew.data.to_device import to_device
from clfew.methods.base import Method, Pictures, crops_and_flips
from clfew.methods.patches import patches, require_side
from clfew.models.encoder import Encoder
from clfew.training.batch import Batch

PATCH, GAP, JITTER = 96, 48, 7
"""In pixels of the paper: a patch, the gap to the next one, and how far each moves at random."""
FEWEST_PIXELS = 100
COARSE = 1 / 3
"""The fraction of patches that are made smaller, to FEWEST_PIXELS at the least, and enlarged again."""
NOISE = 0.01
CENTRE = 4
DIRECTIONS = 8


class ContextPrediction(Method):
    """Nine patches of a view, with gaps between them. From the features of the centre patch and another
    one, a head predicts in which of the eight places around the centre the other one lies.

    Gaps and jitter prevent lines that continue from patch to patch from giving the place away. Dropping
    colours prevents the same for colour fringes, which a lens makes away from the middle of a photograph
    (section 3.1).

    The paper cuts patches of one size from images of 150,000 to 450,000 pixels: with its patches and
    gaps, a view of 0.35 times the image's area or more. Crops of random area do the same.
    """

    shows_whole_images = False
    rows_by_image = True

    def __init__(self, encoder: Encoder, recipe: Recipe, gentle: bool = False) -> None:
        super().__init__(encoder, crops_and_flips(recipe), gentle)
        # With this patch the view's side is about four times the patch's, as in the paper.
        self.patch = max(12, 4 * round(encoder.size * 0.375 / 4))
        require_side(encoder, self.patch)
        self.pitch = round(self.patch * (PATCH + GAP) / PATCH)
        self.jitter = max(1, round(self.patch * JITTER / PATCH))
        self.view = 2 * self.pitch + self.patch + 2 * self.jitter
        hidden = min(4096, 8 * encoder.dim)
        self.head = nn.Sequential(
            # BatchNorm has no learned scale, so it cannot shrink its outputs to zero (deepcontext).
            nn.Linear(2 * encoder.dim, hidden, bias=False),
            nn.BatchNorm1d(hidden, affine=False),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, DIRECTIONS),
        )

    def patches(self, batch: Batch) -> Tensor:
        """Returns the nine patches of each view, row by row: (B, 9, 3, patch, patch) in [0, 1]."""
        view_BxCxVxV = self.one_view(batch, self.view)
        random_Bx9x2 = to_device(batch.random.uniform(100, 18), view_BxCxVxV.device).view(-1, 9, 2)
        places = torch.arange(3, device=random_Bx9x2.device)
        grid = torch.cartesian_prod(places, places) * self.pitch
        corners = grid + (random_Bx9x2 * (2 * self.jitter + 1)).long()
        return self._coarse(patches(view_BxCxVxV, corners, self.patch), batch)

    def _coarse(self, patches_Bx9xCxSxS: Tensor, batch: Batch) -> Tensor:
        """Returns the patches, some of them with less detail, so that resolution gives no clue."""
        device, side = patches_Bx9xCxSxS.device, self.patch
        random_Bx10 = to_device(batch.random.uniform(101, 10), device)
        least = min(side, round(FEWEST_PIXELS**0.5))
        # All patches of a step share one size; each step draws another.
        smaller = least + int(batch.random.once(102, 1)[0] * (side - least + 1))
        zero, whole = torch.zeros(1, device=device), torch.full((1,), float(side), device=device)
        down = resampling_matrix(zero, whole, side, smaller)[0]
        up = resampling_matrix(zero, torch.full_like(whole, float(smaller)), smaller, side)[0]
        down_and_up = up @ down
        coarse = down_and_up @ patches_Bx9xCxSxS @ down_and_up.T
        is_coarse = (random_Bx10[:, :9] < COARSE)[..., None, None, None]
        return torch.where(is_coarse, coarse, patches_Bx9xCxSxS)

    def one_colour(self, patches_NxCxSxS: Tensor, random_N: Tensor, noise_NxCxSxS: Tensor) -> Tensor:
        """Returns one random channel of each patch, with mean 0 and root mean square 1, and noise in
        place of the other two (section 3.1, "color dropping")."""
        kept = F.one_hot((random_N * 3).long(), 3)[..., None, None].to(patches_NxCxSxS.dtype)
        channel = (patches_NxCxSxS * kept).sum(1, keepdim=True)
        channel = channel - channel.mean((2, 3), keepdim=True)
        channel = channel / (channel.square().mean((2, 3), keepdim=True).sqrt() + 1e-4)
        return kept * channel + (1 - kept) * NOISE * noise_NxCxSxS

    def logits(self, patches_Bx9xCxSxS: Tensor, batch: Batch) -> Tensor:
        """Returns scores of the eight directions for each patch around the centre: (B·8, 8)."""
        shape, device = patches_Bx9xCxSxS.shape, patches_Bx9xCxSxS.device
        random_N = to_device(batch.random.uniform(103, 9), device).flatten()
        # All images of a step share the noise: it only fills the dropped channels.
        uniform = to_device(batch.random.once(104, shape[1:].numel()), device).clamp(1e-6)
        noise_NxCxSxS = torch.special.ndtri(uniform).view(9, *shape[2:]).repeat(shape[0], 1, 1, 1)
        inputs = self.one_colour(patches_Bx9xCxSxS.flatten(0, 1), random_N, noise_NxCxSxS)
        features_Bx9xD = self.encoder.backbone(inputs).flatten(1).view(shape[0], 9, -1)
        around_Bx8xD = torch.cat([features_Bx9xD[:, :CENTRE], features_Bx9xD[:, CENTRE + 1 :]], dim=1)
        centre_Bx8xD = features_Bx9xD[:, CENTRE : CENTRE + 1].expand(-1, DIRECTIONS, -1)
        pairs = torch.cat([centre_Bx8xD, around_Bx8xD], dim=2)
        return self.head(pairs.flatten(0, 1))

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        logits = self.logits(self.patches(batch), batch).float()
        truth = torch.arange(DIRECTIONS, device=logits.device).repeat(len(batch.images))
        correct = (logits.argmax(1) == truth).float().mean()
        return F.cross_entropy(logits, truth), {"found": correct}

    @torch.no_grad()
    def pictures(self, batch: Batch) -> Pictures:
        cut = self.patches(batch)
        predicted = self.logits(cut, batch).view(-1, DIRECTIONS, DIRECTIONS).argmax(2)
        around = torch.tensor([i for i in range(9) if i != CENTRE], device=cut.device)
        placed = torch.ones_like(cut)
        placed[:, CENTRE] = cut[:, CENTRE]
        image = torch.arange(len(cut), device=cut.device)
        for number in range(DIRECTIONS):  # If two are put in one place, the later one covers the other.
            placed[image, around[predicted[:, number]]] = cut[:, around[number]]
        return [("patches", _framed(cut)), ("predicted places", _framed(placed))]


def _framed(patches_Bx9xCxSxS: Tensor) -> Tensor:
    """Returns the nine patches in three rows of three, with white frames."""
    spaced = F.pad(patches_Bx9xCxSxS, (2, 2, 2, 2), value=1.0)
    return torch.cat([torch.cat(list(r.unbind(1)), dim=3) for r in spaced.split(3, dim=1)], dim=2)
