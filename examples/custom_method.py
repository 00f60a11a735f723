"""A pretraining method of your own, compared with SimCLR on your own images.

    python examples/custom_method.py FOLDER

The method is RotNet (Gidaris et al., Unsupervised Representation Learning by Predicting Image Rotations,
ICLR 2018): each view is turned by 0, 90, 180 and 270 degrees, and the network predicts by how much. A
method is an `nn.Module` with a `loss`. Once registered, `pretrain` and `compare` take it by its name.

FOLDER holds a subfolder of images for each class. Labels are used to compare, not to pretrain.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from clfew import compare, register_method
from clfew.data.augment import random_views
from clfew.methods.base import Method

TURNS = 4


class Rotation(Method):
    """Each view is turned by 0 to 3 quarters; a linear layer on the features predicts by how many."""

    def __init__(self, encoder, recipe, gentle=False):
        super().__init__(encoder, replace(recipe, jitter=0, grey=0, blur=0), gentle)
        self.head = nn.Linear(encoder.dim, TURNS)

    def turned(self, batch):
        """Returns (4·B, 3, size, size): all views by 0 degrees, then all by 90, and so on."""
        size = self.encoder.size
        views = random_views(batch.images, batch.aspects, size, self.recipe, batch.random, views=1)
        return torch.cat([torch.rot90(views, turns, dims=(2, 3)) for turns in range(TURNS)])

    def loss(self, batch):
        images = self.turned(batch)
        logits = self.head(self.encoder(images)).float()
        truth = torch.arange(TURNS, device=logits.device).repeat_interleave(len(batch.images))
        return F.cross_entropy(logits, truth), {"correct": (logits.argmax(1) == truth).float().mean()}

    @torch.no_grad()
    def pictures(self, batch):
        parts = self.turned(batch).chunk(TURNS)
        return [(f"{90 * turns} degrees", part) for turns, part in enumerate(parts)]


def main(folder: str) -> None:
    register_method("rotation", Rotation)
    # Photographs taken from above look the same from all sides: turns teach nothing about them.
    _, result = compare(folder, methods="rotation,simclr", labels="1%,10%", minutes=1)
    print("accuracy  method      labels")
    for row in result["rows"]:
        print(f"{row['mean']:8.1%}  {row['method']:<10}  {row['budget']} ({row['labels']})")


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit(__doc__)
    main(sys.argv[1])
