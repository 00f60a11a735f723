"""A classifier: an encoder, the layer kept from the projector, and a head.

Shape suffixes: N images, D features, C classes, K neighbours, L labelled images.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clfew.models.encoder import Encoder
from clfew.models.metadata import ArtifactMetadata
from clfew.models.side_by_side import SideBySide

OLD_FLOOR = 1e-4


class NeighbourHead(nn.Module):
    """k-nearest-neighbour vote by cosine similarity, weights exp(similarity / 0.07), k = 20.

    This is the usual protocol for self-supervised features (Wu et al., Unsupervised Feature Learning via
    Non-Parametric Instance Discrimination, CVPR 2018, section 3.4), with k at most the number of
    labelled images. floor: what each class has beside its fraction of the votes, so that few neighbours
    that agree do not make the other classes impossible.
    """

    features: Tensor
    labels: Tensor
    neighbours: Tensor
    floor: Tensor

    def __init__(
        self,
        features_LxD: Tensor,
        labels_L: Tensor,
        classes: int,
        k: int = 20,
        floor: float | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("features", F.normalize(features_LxD, dim=1))
        self.register_buffer("labels", labels_L)
        # Saved with the weights, because k depends on the number of labels of the smallest class.
        self.register_buffer("neighbours", torch.tensor(k))
        # Not saved where it is what heads had before it was saved.
        floor_1 = torch.tensor(OLD_FLOOR if floor is None else floor)
        self.register_buffer("floor", floor_1, persistent=floor is not None)
        self.classes = classes

    @property
    def k(self) -> int:
        """The number of neighbours that vote."""
        return max(1, min(int(self.neighbours), len(self.labels)))

    def forward(self, features_NxD: Tensor) -> Tensor:
        similarity_NxL = F.normalize(features_NxD, dim=1) @ self.features.T
        top_NxK, index_NxK = similarity_NxL.topk(self.k, dim=1)
        votes_NxC = torch.zeros(features_NxD.shape[0], self.classes, device=top_NxK.device)
        votes_NxC.scatter_add_(1, self.labels[index_NxK], ((top_NxK - 1) / 0.07).exp())
        # Logs of each class's fraction of the votes, so that softmax returns nearly these fractions.
        return (votes_NxC / votes_NxC.sum(1, keepdim=True) + self.floor).log()


class UnitHead(nn.Linear):
    """A linear layer on features that are centred and scaled to unit length: with a handful of labels,
    the direction of a feature vector tells more about its class than its length."""

    centre: Tensor

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__(dim, classes)
        self.register_buffer("centre", torch.zeros(dim))

    def forward(self, features_NxD: Tensor) -> Tensor:
        return super().forward(F.normalize(features_NxD - self.centre, dim=1))


def build_neck(dim: int, width: int) -> nn.Sequential:
    """Builds the projector's first layer, from which SimCLRv2 fine-tunes (section 3); empty for width
    0."""
    if width == 0:
        return nn.Sequential()
    return nn.Sequential(nn.Linear(dim, width, bias=False), nn.BatchNorm1d(width), nn.ReLU())


def neck_width(neck: nn.Sequential) -> int:
    """Returns the number of features a neck outputs, 0 for an empty one."""
    first = next(neck.children(), None)
    return first.out_features if isinstance(first, nn.Linear) else 0


def encoder_of(metadata: ArtifactMetadata) -> Encoder:
    """Builds the encoder that an artifact's metadata describes; its weights are not loaded yet."""
    if metadata.parts:
        return SideBySide([encoder_of(ArtifactMetadata(**part)) for part in metadata.parts])
    return Encoder(
        metadata.encoder,
        metadata.size,
        metadata.mean,
        metadata.std,
        metadata.adapter,
        metadata.sees,
        metadata.stage,
    )


class Classifier(nn.Module):
    """Maps images in [0, 1] of shape (N, 3, size, size) to logits (N, C).

    temperature: the head's logits are divided by it, so that their softmax is calibrated (see
    `clfew.finetuning.calibration`).
    """

    def __init__(self, encoder: Encoder, neck: nn.Sequential, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.neck, self.head = encoder, neck, head
        self.temperature = 1.0

    def forward(self, images: Tensor) -> Tensor:
        return self.from_features(self.encoder(images))

    def from_features(self, features_NxD: Tensor) -> Tensor:
        """Computes logits from the encoder's features, with the head in float32: bfloat16 has too few
        digits for logits."""
        hidden = self.neck(features_NxD)
        with torch.autocast(hidden.device.type, enabled=False):
            return self.head(hidden.float()) / self.temperature

    @classmethod
    def build(cls, metadata: ArtifactMetadata, shapes: dict[str, tuple[int, ...]]) -> "Classifier":
        """Builds the network that an artifact's metadata describes; its weights are not loaded yet.

        shapes: the shapes of the artifact's tensors. They show which linear head it has, and how many
        images a k-nearest-neighbour head keeps.
        """
        encoder = encoder_of(metadata)
        classes, width = len(metadata.classes), metadata.neck or encoder.dim
        head: nn.Module = nn.Linear(width, classes)
        if "classifier.head.centre" in shapes:
            head = UnitHead(width, classes)
        elif metadata.mode == "knn":
            bank = shapes.get("classifier.head.features", (0,))[0]
            labels = torch.zeros(bank, dtype=torch.int64)
            floor = 0.0 if "classifier.head.floor" in shapes else None
            head = NeighbourHead(torch.zeros(bank, width), labels, classes, floor=floor)
        classifier = cls(encoder, build_neck(encoder.dim, metadata.neck), head)
        classifier.temperature = metadata.temperature
        return classifier
