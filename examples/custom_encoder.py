"""Pretrain and fine-tune a network of your own.

    python examples/custom_encoder.py FOLDER

An encoder is any `nn.Module` from normalised images (N, 3, size, size) to features (N, dim). Register
a function that builds it under a name, and every function of clfew takes the encoder by that name.
FOLDER holds a subfolder of images for each class.
"""

import sys
from pathlib import Path

from torch import nn

from clfew import finetune, pretrain, register_encoder


def patch_mixer(size: int) -> nn.Module:
    """Patches of 4 pixels, four depthwise-separable blocks and global average pooling: 128 features."""

    def block(width: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(width, width, 5, padding=2, groups=width),
            nn.BatchNorm2d(width),
            nn.Conv2d(width, width, 1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )

    return nn.Sequential(
        nn.Conv2d(3, 128, 4, stride=4),
        *(block(128) for _ in range(4)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def main(folder: str, minutes: float = 1.0) -> None:
    register_encoder("patch-mixer", patch_mixer)
    encoder = pretrain(folder, encoder="patch-mixer", minutes=minutes)
    _, result = finetune(folder, labels="5%", origin=[str(encoder)], repeat=3)
    print(f"accuracy {result['mean']:.3f} ± {result['std']:.3f} over 3 label samples")


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit(__doc__)
    main(sys.argv[1])
