"""Context Prediction: where is this patch, seen from that one?

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
"""Pixels in the paper: a patch, the gap to the next one, and how far each moves at random."""
FEWEST_PIXELS = 100
COARSE = 1 / 3
"""Share of the patches that are made smaller, to as few as FEWEST_PIXELS, and enlarged again."""
NOISE = 0.01
CENTRE = 4
DIRECTIONS = 8


class ContextPrediction(Method):
    """Nine patches of a view, a gap between any two; which of eight places a patch has beside the
    centre one is told from the features of both.

    Without the gap and the jitter, lines that go on would tell; without the dropped colours, the fringes
    that a lens makes away from the middle of a photograph (section 3.1).
    """

    shows_whole_images = False

    def __init__(self, encoder: Encoder, recipe: Recipe, gentle: bool = False) -> None:
        super().__init__(encoder, crops_and_flips(recipe), gentle)
        # The patches of a view at four times the patch's side, as of the paper's images.
        self.patch = max(12, 4 * round(encoder.size * 0.375 / 4))
        require_side(encoder, self.patch)
        self.pitch = round(self.patch * (PATCH + GAP) / PATCH)
        self.jitter = max(1, round(self.patch * JITTER / PATCH))
        self.view = 2 * self.pitch + self.patch + 2 * self.jitter
        hidden = min(4096, 8 * encoder.dim)
        self.head = nn.Sequential(
            # Without a scale of its own BatchNorm cannot fall silent (deepcontext).
            nn.Linear(2 * encoder.dim, hidden, bias=False),
            nn.BatchNorm1d(hidden, affine=False),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, DIRECTIONS),
        )

    def patches(self, batch: Batch) -> Tensor:
        """(B, 9, 3, patch, patch) in [0, 1], row by row."""
        view_BxCxVxV = self.one_view(batch, self.view)
        moved = to_device(batch.random.uniform(100, 18), view_BxCxVxV.device).view(-1, 9, 2)
        grid = torch.cartesian_prod(*[torch.arange(3, device=moved.device)] * 2) * self.pitch
        corners = grid + (moved * (2 * self.jitter + 1)).long()
        return self._coarse(patches(view_BxCxVxV, corners, self.patch), batch)

    def _coarse(self, patches_Bx9xCxSxS: Tensor, batch: Batch) -> Tensor:
        """Some of the patches with less detail, so that resolution is no clue."""
        device, side = patches_Bx9xCxSxS.device, self.patch
        draws = to_device(batch.random.uniform(101, 10), device)
        least = min(side, round(FEWEST_PIXELS**0.5))
        # One size for all of a step, another in the next.
        smaller = least + int(batch.random.once(102, 1)[0] * (side - least + 1))
        zero, whole = torch.zeros(1, device=device), torch.full((1,), float(side), device=device)
        down = resampling_matrix(zero, whole, side, smaller)[0]
        up = resampling_matrix(zero, torch.full_like(whole, float(smaller)), smaller, side)[0]
        there_and_back = up @ down
        coarse = there_and_back @ patches_Bx9xCxSxS @ there_and_back.T
        return torch.where((draws[:, :9] < COARSE)[..., None, None, None], coarse, patches_Bx9xCxSxS)

    def one_colour(self, patches_NxCxSxS: Tensor, draws_N: Tensor, noise_NxCxSxS: Tensor) -> Tensor:
        """One channel of each patch, mean 0 and root mean square 1; noise in place of the other two
        (section 3.1, "color dropping")."""
        kept = F.one_hot((draws_N * 3).long(), 3)[..., None, None].to(patches_NxCxSxS.dtype)
        channel = (patches_NxCxSxS * kept).sum(1, keepdim=True)
        channel = channel - channel.mean((2, 3), keepdim=True)
        channel = channel / (channel.square().mean((2, 3), keepdim=True).sqrt() + 1e-4)
        return kept * channel + (1 - kept) * NOISE * noise_NxCxSxS

    def logits(self, patches_Bx9xCxSxS: Tensor, batch: Batch) -> Tensor:
        """Scores of the eight directions for each patch around the centre: (B·8, 8)."""
        shape, device = patches_Bx9xCxSxS.shape, patches_Bx9xCxSxS.device
        which = to_device(batch.random.uniform(103, 9), device).flatten()
        # One for all images of a step: it fills what is dropped, and says nothing.
        draws = to_device(batch.random.once(104, shape[1:].numel()), device).clamp(1e-6)
        noise_NxCxSxS = torch.special.ndtri(draws).view(9, *shape[2:]).repeat(shape[0], 1, 1, 1)
        inputs = self.one_colour(patches_Bx9xCxSxS.flatten(0, 1), which, noise_NxCxSxS)
        features_Bx9xD = self.encoder.backbone(inputs).flatten(1).view(shape[0], 9, -1)
        around = [i for i in range(9) if i != CENTRE]
        centre_Bx8xD = features_Bx9xD[:, CENTRE : CENTRE + 1].expand(-1, DIRECTIONS, -1)
        pairs = torch.cat([centre_Bx8xD, features_Bx9xD[:, around]], dim=2)
        return self.head(pairs.flatten(0, 1))

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        logits = self.logits(self.patches(batch), batch).float()
        truth = torch.arange(DIRECTIONS, device=logits.device).repeat(len(batch.images))
        found = (logits.argmax(1) == truth).float().mean()
        return F.cross_entropy(logits, truth), {"found": found}

    @torch.no_grad()
    def pictures(self, batch: Batch) -> Pictures:
        cut = self.patches(batch)
        guesses = self.logits(cut, batch).view(-1, DIRECTIONS, DIRECTIONS).argmax(2)
        around = torch.tensor([i for i in range(9) if i != CENTRE], device=cut.device)
        placed = torch.ones_like(cut)
        placed[:, CENTRE] = cut[:, CENTRE]
        image = torch.arange(len(cut), device=cut.device)
        for number in range(DIRECTIONS):  # Where two are put in one place, the later one is seen.
            placed[image, around[guesses[:, number]]] = cut[:, around[number]]
        return [("patches", _framed(cut)), ("as placed", _framed(placed))]


def _framed(patches_Bx9xCxSxS: Tensor) -> Tensor:
    spaced = F.pad(patches_Bx9xCxSxS, (2, 2, 2, 2), value=1.0)
    return torch.cat([torch.cat(list(r.unbind(1)), dim=3) for r in spaced.split(3, dim=1)], dim=2)
