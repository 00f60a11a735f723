"""Jigsaw Puzzles: predict the order of shuffled tiles.

Noroozi and Favaro, Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles, ECCV 2016
(sections 3 and 4.2), with the permutations scored several at a time as in Kolesnikov et al., Revisiting
Self-Supervised Visual Representation Learning, CVPR 2019.

Shape suffixes: B images in the batch, T tiles, K puzzles of each image, D features, P permutations.
"""

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clfew.data.augment import Recipe
from clfew.data.to_device import to_device
from clfew.methods.base import Method, Pictures, crops_and_flips, without_colour
from clfew.methods.patches import patches, require_side, standardised
from clfew.models.encoder import Encoder
from clfew.training.batch import Batch

PERMUTATIONS = 100
PUZZLES = 8
"""The number of orders that each image's tiles are shown in. Tiles are costly, orders are cheap."""
GREY = 0.66
"""The fraction of views without colour, as in Kolesnikov et al.; the paper has 0.3."""
SHIFT = 2 / 64
"""How far two channels of a coloured tile are moved at most, as a fraction of its side."""
SMALL = 48
"""Below this many pixels a third of an image shows too little, so there are 2×2 tiles, in all orders."""


def permutation_set(tiles: int, count: int, seed: int = 0) -> np.ndarray:
    """Returns `count` permutations of `tiles` that are far apart: (P, T), int64 (algorithm 1).

    The first one is random. Each next one has the largest mean Hamming distance to those already chosen.
    """
    everything = np.array(list(itertools.permutations(range(tiles))), dtype=np.int8)
    count = min(count, len(everything))
    chosen = [int(np.random.default_rng(seed).integers(len(everything)))]
    distance = np.zeros(len(everything))
    while len(chosen) < count:
        distance += (everything != everything[chosen[-1]]).sum(1)
        distance[chosen] = -1
        chosen.append(int(distance.argmax()))
    return everything[chosen].astype(np.int64)


class Jigsaw(Method):
    """The encoder gets each tile of a view by itself; a head predicts the order of the tiles.

    A tile is cut at random from its cell (64 of 85 pixels in the paper), so edges do not continue, and
    standardised by itself, so brightness and contrast do not give its place away. Nor do the colour
    fringes of a lens, which grow towards an image's edge: two views of three have no colour, and in the
    others each tile's first and last channel are moved by up to two pixels of 64 (up to one pixel at
    least; section 3.3).
    """

    shows_whole_images = False
    rows_by_image = True

    crop_side = 255 / 256  # Crops of 255 pixels from images of 256.

    def __init__(self, encoder: Encoder, recipe: Recipe, gentle: bool = False) -> None:
        super().__init__(encoder, crops_and_flips(recipe), gentle)
        self.grid = 2 if encoder.size < SMALL else 3
        # Half or three eighths of the encoder's side: tiles are only a little more detailed than the
        # images of its later use.
        self.tile = 4 * round(encoder.size * (0.5 if self.grid == 2 else 0.375) / 4)
        self.cell = round(self.tile * 85 / 64)
        require_side(encoder, self.tile)
        orders = permutation_set(self.grid**2, PERMUTATIONS)
        self.orders: Tensor
        self.register_buffer("orders", torch.from_numpy(orders))
        width, hidden = min(1024, 2 * encoder.dim), min(4096, 4 * encoder.dim)
        self.of_tile = nn.Sequential(
            nn.Linear(encoder.dim, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()
        )
        self.of_order = nn.Sequential(
            nn.Linear(self.grid**2 * width, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(hidden, len(orders)),
        )

    def tiles(self, batch: Batch) -> Tensor:
        """Returns the tiles of each view, row by row: (B, T, 3, tile, tile) in [0, 1]."""
        size, count = self.grid * self.cell, self.grid**2
        view_BxCxVxV = self.one_view(batch, size)
        # Column 0 decides about colour. For each tile, the others hold (y, x) of the corner and of the
        # shifts of two channels.
        random_BxN = to_device(batch.random.uniform(100, 1 + 6 * count), view_BxCxVxV.device)
        is_grey = random_BxN[:, :1, None, None] < GREY
        view_BxCxVxV = torch.where(is_grey, without_colour(view_BxCxVxV), view_BxCxVxV)
        random_BxTx3x2 = random_BxN[:, 1:].view(-1, count, 3, 2)
        free = self.cell - self.tile + 1
        places = torch.arange(self.grid, device=random_BxN.device)
        cells = torch.cartesian_prod(places, places) * self.cell
        corners = cells + (random_BxTx3x2[:, :, 0] * free).long()
        # The first and the last channel move, the one between them stays.
        reach = max(1, round(SHIFT * self.tile))
        shifts = (random_BxTx3x2[:, :, 1:] * (2 * reach + 1)).long() - reach
        shifts = torch.where(is_grey, 0, shifts)
        channels = [
            patches(
                view_BxCxVxV[:, c : c + 1],
                (corners + shift).clamp(0, size - self.tile),
                self.tile,
            )
            for c, shift in enumerate((shifts[:, :, 0], 0 * corners, shifts[:, :, 1]))
        ]
        return torch.cat(channels, dim=2)

    def puzzles(self, batch: Batch) -> Tensor:
        """Returns the orders that tiles are shown in, as rows of `orders`: (B, K)."""
        random_BxK = to_device(batch.random.uniform(101, PUZZLES), batch.images.device)
        return (random_BxK * len(self.orders)).long()

    def logits(self, tiles_BxTxCxSxS: Tensor, orders_BxK: Tensor) -> Tensor:
        """Returns scores of each permutation for each puzzle: (B·K, P)."""
        count = tiles_BxTxCxSxS.shape[1]
        # This replaces the encoder's own normalisation, which is the same for all images.
        features = self.encoder.backbone(standardised(tiles_BxTxCxSxS).flatten(0, 1)).flatten(1)
        features_BxTxD = self.of_tile(features).view(-1, count, self.of_tile[0].out_features)
        image = torch.arange(len(features_BxTxD), device=features.device)[:, None, None]
        shuffled_BxKxTxD = features_BxTxD[image, self.orders[orders_BxK]]
        return self.of_order(shuffled_BxKxTxD.flatten(2).flatten(0, 1))

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        orders_BxK = self.puzzles(batch)
        logits = self.logits(self.tiles(batch), orders_BxK).float()
        solved = (logits.argmax(1) == orders_BxK.flatten()).float().mean()
        return F.cross_entropy(logits, orders_BxK.flatten()), {"solved": solved}

    @torch.no_grad()
    def pictures(self, batch: Batch) -> Pictures:
        tiles, order = self.tiles(batch), self.puzzles(batch)[:, :1]
        shown = tiles[torch.arange(len(tiles), device=tiles.device)[:, None], self.orders[order[:, 0]]]
        predicted = self.orders[self.logits(tiles, order).argmax(1)]
        inverse = predicted.argsort(1)  # Undoes the predicted order.
        solved = shown[torch.arange(len(tiles), device=tiles.device)[:, None], inverse]
        return [("puzzle", self.arranged(shown)), ("predicted order", self.arranged(solved))]

    def arranged(self, tiles_BxTxCxSxS: Tensor) -> Tensor:
        """Returns the tiles side by side, row by row, with white lines between them."""
        framed = F.pad(tiles_BxTxCxSxS, (1, 1, 1, 1), value=1.0)
        rows = [torch.cat(list(row.unbind(1)), dim=3) for row in framed.split(self.grid, dim=1)]
        return torch.cat(rows, dim=2)
