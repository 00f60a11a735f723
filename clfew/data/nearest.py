"""Nearest neighbours of many vectors: exact for a few, and for many within the nearest of cells."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

EXACT = 20_000
"""The most vectors that are compared with every other one."""

PROBED = 8
"""The cells in which the neighbours of a vector are looked for: those whose centres are nearest to it.
What is nearly the same lies in the same cell or one beside it."""

_CHUNK = 1024


def nearest(
    points: np.ndarray, queries: np.ndarray, most: int, same: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the Euclidean distances, float32 (Q, K), and the indices, int64 (Q, K), of the nearest
    points of each query, nearest first.

    points, queries: float32 (N, D), (Q, D). most: K, of which there are fewer where there are fewer
    points. same: whether query i is point i, which is not its own neighbour. Of more than EXACT points,
    those in the PROBED cells nearest to a query are compared, and the rest of K, if that is fewer, have
    the distance inf.
    """
    import torch  # Opening a source imports this module, and takes no such time.

    most = min(most, len(points) - same)
    points_NxD, queries_QxD = torch.from_numpy(points), torch.from_numpy(queries)
    with torch.no_grad():
        search = _exact if len(points) <= EXACT else _in_cells
        squares, indices = search(points_NxD, queries_QxD, most, same)
    return squares.clamp_min(0).sqrt().numpy(), indices.numpy()


def _exact(
    points: "torch.Tensor", queries: "torch.Tensor", most: int, same: bool
) -> "tuple[torch.Tensor, torch.Tensor]":
    import torch

    squares = torch.empty(len(queries), most)
    indices = torch.empty(len(queries), most, dtype=torch.int64)
    for start in range(0, len(queries), _CHUNK):
        rows = torch.arange(start, min(start + _CHUNK, len(queries)))
        apart = _squares(queries[rows], points)
        if same:
            apart[torch.arange(len(rows)), rows] = torch.inf
        squares[rows], indices[rows] = apart.topk(most, largest=False)
    return squares, indices


def _in_cells(
    points: "torch.Tensor", queries: "torch.Tensor", most: int, same: bool
) -> "tuple[torch.Tensor, torch.Tensor]":
    """An inverted file (Jégou et al., 2011, section 4) whose centres are points drawn at random."""
    import torch

    cells = int(2 * len(points) ** 0.5)
    drawn = torch.from_numpy(np.random.default_rng(0).choice(len(points), cells, replace=False))
    centres = points[drawn]
    members = _grouped(_exact(centres, points, 1, False)[1], cells)
    askers = _grouped(_exact(centres, queries, PROBED, False)[1], cells)
    squares = torch.full((len(queries), most), torch.inf)
    indices = torch.zeros(len(queries), most, dtype=torch.int64)
    for inside, asking in zip(members, askers, strict=True):
        for some in asking.split(_CHUNK) if len(inside) else ():
            apart = _squares(queries[some], points[inside])
            if same:
                apart[some[:, None] == inside] = torch.inf
            both = torch.cat([squares[some], apart], 1)
            squares[some], chosen = both.topk(most, largest=False)
            known = torch.cat([indices[some], inside.expand(len(some), -1)], 1)
            indices[some] = known.gather(1, chosen)
    return squares, indices


def _grouped(cells: "torch.Tensor", count: int) -> "tuple[torch.Tensor, ...]":
    """Returns for each cell the rows that name it. cells: int64 (N, K)."""
    order = cells.flatten().argsort(stable=True)
    sizes = cells.flatten().bincount(minlength=count)
    return (order // cells.shape[1]).split(sizes.tolist())


def _squares(queries: "torch.Tensor", points: "torch.Tensor") -> "torch.Tensor":
    """Returns the squared distances (Q, N)."""
    import torch

    lengths = (queries**2).sum(1, keepdim=True) + (points**2).sum(1)
    return torch.addmm(lengths, queries, points.T, alpha=-2)
