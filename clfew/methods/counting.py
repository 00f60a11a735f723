"""Learning to Count: the tiles of an image hold together what the whole holds.

Noroozi, Pirsiavash and Favaro, Representation Learning by Learning to Count, ICCV 2017 (equations 3
and 4, section 4).

Shape suffixes: B images in the batch, T tiles, D features, K counts.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clfew.data.augment import Recipe
from clfew.methods.base import Method, Pictures, crops_and_flips, without_colour
from clfew.methods.patches import require_side
from clfew.models.encoder import Encoder
from clfew.training.batch import Batch

MARGIN = 10.0
COUNTS = 1000
GREY = 0.67
TILES = 4
RESAMPLERS = ("bicubic", "bilinear", "lanczos", "area")


def counting_loss(whole_BxK: Tensor, tiles_TxBxK: Tensor, margin: float = MARGIN) -> Tensor:
    """|φ(D∘x) - Σ φ(T_j∘x)|² + max(0, M - |φ(D∘y) - Σ φ(T_j∘x)|²), the mean over images (equation 4).

    y, another image, is the next one of the batch. The margin is on the whole vector's distance: without
    it, to count nothing would do.
    """
    total_BxK = tiles_TxBxK.sum(0)
    same = (whole_BxK - total_BxK).square().sum(1)
    other = (whole_BxK.roll(1, dims=0) - total_BxK).square().sum(1)
    return (same + F.relu(margin - other)).mean()


class Counting(Method):
    """Counts of the four tiles of a view, and of the view at half its size.

    How it is made smaller changes from step to step, or the traces of one resampler would tell tiles
    from wholes. In two steps of three nothing has colour: if only one of two images had, that alone
    would tell them apart.
    """

    shows_whole_images = False
    learning_rate = 3e-4  # With larger steps, soon nothing is counted: that costs no more than MARGIN.

    def __init__(self, encoder: Encoder, recipe: Recipe, gentle: bool = False) -> None:
        super().__init__(encoder, crops_and_flips(recipe), gentle)
        # All that the encoder sees are tiles; their detail is that of the images it will be given.
        self.tile = 4 * round(encoder.size * 0.625 / 4)
        require_side(encoder, self.tile)
        hidden = min(4096, 4 * encoder.dim)
        self.counts = nn.Sequential(
            nn.Linear(encoder.dim, hidden), nn.ReLU(), nn.Linear(hidden, COUNTS), nn.ReLU()
        )
        # Counts start about as far apart as the margin asks for, not ten times as far.
        with torch.no_grad():
            last = self.counts[2]
            assert isinstance(last, nn.Linear)
            last.weight.mul_(0.3)

    def pieces(self, batch: Batch) -> Tensor:
        """The whole at half its size, then its four tiles: (5, B, 3, tile, tile) in [0, 1]."""
        view = self.one_view(batch, 2 * self.tile).float()  # In bf16 training it comes in bf16.
        if batch.random.once(101, 1)[0] < GREY:
            view = without_colour(view)
        kind = RESAMPLERS[int(batch.random.once(100, 1)[0] * len(RESAMPLERS))]
        rows = view.split(self.tile, dim=2)
        tiles = [tile for row in rows for tile in row.split(self.tile, dim=3)]
        return torch.stack([halved(view, kind).clamp(0, 1), *tiles])

    def count(self, pieces_5xBxCxSxS: Tensor) -> Tensor:
        """(5, B, K)"""
        inputs = standardised_together(pieces_5xBxCxSxS)
        features = self.encoder.backbone(inputs.flatten(0, 1)).flatten(1)
        return self.counts(features).float().view(1 + TILES, -1, COUNTS)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        counts = self.count(self.pieces(batch))
        alive = (counts.detach()[0] > 0).any(0).float().mean()
        return counting_loss(counts[0], counts[1:]), {"alive": alive}

    @torch.no_grad()
    def pictures(self, batch: Batch) -> Pictures:
        pieces = self.pieces(batch)
        tiles = F.pad(pieces[1:], (1, 1, 1, 1), value=1.0)
        rows = [torch.cat([tiles[i], tiles[i + 1]], dim=3) for i in (0, 2)]
        return [("the whole, smaller", pieces[0]), ("its tiles", torch.cat(rows, dim=2))]


def standardised_together(pieces_5xBxCxSxS: Tensor) -> Tensor:
    """The pieces of an image by the mean and the spread of its whole: each by its own would hide that
    one is empty and another full."""
    whole = pieces_5xBxCxSxS[:1]
    mean, spread = whole.mean((3, 4), keepdim=True), whole.std((3, 4), keepdim=True, correction=0)
    return (pieces_5xBxCxSxS - mean) / (spread + 1e-4)


def halved(images_NxCxSxS: Tensor, kind: str) -> Tensor:
    """Images at half their side by one of RESAMPLERS."""
    side = images_NxCxSxS.shape[2] // 2
    if kind == "area":
        return F.avg_pool2d(images_NxCxSxS, 2)
    if kind == "lanczos":
        matrix = lanczos_matrix(2 * side, side).to(images_NxCxSxS)
        with torch.autocast(matrix.device.type, enabled=False):
            return matrix @ images_NxCxSxS @ matrix.T
    return F.interpolate(images_NxCxSxS, (side, side), mode=kind, align_corners=False, antialias=True)


def lanczos_matrix(side: int, smaller: int, lobes: int = 3) -> Tensor:
    """A line of `side` pixels to `smaller` ones by Lanczos's kernel, as Pillow's: (smaller, side)."""
    scale = side / smaller
    centre = (torch.arange(smaller, dtype=torch.float64)[:, None] + 0.5) * scale
    distance = (torch.arange(side, dtype=torch.float64) + 0.5 - centre) / scale
    kernel = torch.sinc(distance) * torch.sinc(distance / lobes) * (distance.abs() < lobes)
    return (kernel / kernel.sum(1, keepdim=True)).float()
