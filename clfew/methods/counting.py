"""Learning to Count: the counts of an image's tiles should add up to the counts of the whole image.

Noroozi, Pirsiavash and Favaro, Representation Learning by Learning to Count, ICCV 2017 (equations 3
and 4, section 4).

Shape suffixes: B images in the batch, T tiles, D features, K counts.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clfew.data.augment import Recipe
from clfew.group.tensors import largest, row_before
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
    """Returns |φ(D∘x) - Σ φ(T_j∘x)|² + max(0, M - |φ(D∘y) - Σ φ(T_j∘x)|²), averaged over images
    (equation 4).

    y is another image, the one before x in the batch. The margin M is on the distance of whole vectors:
    without this term, counts of zero for all images would have no loss.
    """
    total_BxK = tiles_TxBxK.sum(0)
    same = (whole_BxK - total_BxK).square().sum(1)
    other = (row_before(whole_BxK) - total_BxK).square().sum(1)
    return (same + F.relu(margin - other)).mean()


class Counting(Method):
    """Counts of the four tiles of a view, and of the whole view at half its size.

    The way views are halved changes from step to step, because the traces of a single resampler would
    show which inputs are whole views. In two steps of three all images are grey: if only one of two
    images had colour, that alone would tell them apart.
    """

    shows_whole_images = False
    learning_rate = 3e-4  # With larger steps all counts soon are zero, which costs only MARGIN.

    crop_side = 224 / 256  # Crops of 224 pixels from images of 256.

    def __init__(self, encoder: Encoder, recipe: Recipe, gentle: bool = False) -> None:
        super().__init__(encoder, crops_and_flips(recipe), gentle)
        # The encoder is trained on tiles only; they are as detailed as the images of its later use.
        self.tile = 4 * round(encoder.size * 0.625 / 4)
        require_side(encoder, self.tile)
        hidden = min(4096, 4 * encoder.dim)
        self.counts = nn.Sequential(
            nn.Linear(encoder.dim, hidden), nn.ReLU(), nn.Linear(hidden, COUNTS), nn.ReLU()
        )
        # The counts of two images then start about as far apart as the margin, not ten times as far.
        with torch.no_grad():
            last = self.counts[2]
            assert isinstance(last, nn.Linear)
            last.weight.mul_(0.3)

    def pieces(self, batch: Batch) -> Tensor:
        """Returns the whole view at half its size, then its four tiles: (5, B, 3, tile, tile) in
        [0, 1]."""
        view = self.one_view(batch, 2 * self.tile).float()  # In bf16 training, views are bf16.
        if batch.random.once(101, 1)[0] < GREY:
            view = without_colour(view)
        kind = RESAMPLERS[int(batch.random.once(100, 1)[0] * len(RESAMPLERS))]
        rows = view.split(self.tile, dim=2)
        tiles = [tile for row in rows for tile in row.split(self.tile, dim=3)]
        return torch.stack([halved(view, kind).clamp(0, 1), *tiles])

    def count(self, pieces_5xBxCxSxS: Tensor) -> Tensor:
        """Returns the counts of the pieces: (5, B, K)."""
        inputs = standardised_together(pieces_5xBxCxSxS)
        features = self.encoder.backbone(inputs.flatten(0, 1)).flatten(1)
        return self.counts(features).float().view(1 + TILES, -1, COUNTS)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        counts = self.count(self.pieces(batch))
        alive = largest((counts.detach()[0] > 0).any(0).float()).mean()
        return counting_loss(counts[0], counts[1:]), {"alive": alive}

    @torch.no_grad()
    def pictures(self, batch: Batch) -> Pictures:
        pieces = self.pieces(batch)
        tiles = F.pad(pieces[1:], (1, 1, 1, 1), value=1.0)
        rows = [torch.cat([tiles[i], tiles[i + 1]], dim=3) for i in (0, 2)]
        return [("view at half size", pieces[0]), ("its tiles", torch.cat(rows, dim=2))]


def standardised_together(pieces_5xBxCxSxS: Tensor) -> Tensor:
    """Standardises the pieces of an image by the mean and standard deviation of the whole view. If each
    piece were standardised by its own, an empty tile would look like a full one."""
    whole = pieces_5xBxCxSxS[:1]
    mean, std = whole.mean((3, 4), keepdim=True), whole.std((3, 4), keepdim=True, correction=0)
    return (pieces_5xBxCxSxS - mean) / (std + 1e-4)


def halved(images_NxCxSxS: Tensor, kind: str) -> Tensor:
    """Returns images at half their side, resampled by `kind`, one of RESAMPLERS."""
    side = images_NxCxSxS.shape[2] // 2
    if kind == "area":
        return F.avg_pool2d(images_NxCxSxS, 2)
    if kind == "lanczos":
        matrix = _lanczos_on(side, images_NxCxSxS.device).to(images_NxCxSxS.dtype)
        with torch.autocast(matrix.device.type, enabled=False):
            return matrix @ images_NxCxSxS @ matrix.T
    return F.interpolate(images_NxCxSxS, (side, side), mode=kind, align_corners=False, antialias=True)


@functools.cache
def _lanczos_on(side: int, device: torch.device) -> Tensor:
    """Returns the matrix that halves lines to `side` pixels, on a device; it is copied there once."""
    return lanczos_matrix(2 * side, side).to(device)


def lanczos_matrix(side: int, smaller: int, lobes: int = 3) -> Tensor:
    """Returns the matrix (smaller, side) that resamples a line of `side` pixels to `smaller` pixels with
    Lanczos's kernel, as Pillow does."""
    scale = side / smaller
    centre = (torch.arange(smaller, dtype=torch.float64)[:, None] + 0.5) * scale
    distance = (torch.arange(side, dtype=torch.float64) + 0.5 - centre) / scale
    kernel = torch.sinc(distance) * torch.sinc(distance / lobes) * (distance.abs() < lobes)
    return (kernel / kernel.sum(1, keepdim=True)).float()
