"""The loss that trains a student on the teacher's predictions for unlabelled images.

It is the sum of two terms: SimCLRv2's third step (Chen et al., Big Self-Supervised Models are Strong
Semi-Supervised Learners, NeurIPS 2020, section 2) on a weak view of each image, and FixMatch (Sohn et
al., NeurIPS 2020) on a strong view, with the self-adaptive thresholds of FreeMatch (Wang et al., ICLR
2023) and the distribution alignment of ReMixMatch (Berthelot et al., ICLR 2020).

Shape suffixes: B images in the batch, M images to learn from, C classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clfew.data.augment import Recipe, random_views
from clfew.data.to_device import to_device
from clfew.group.tensors import mean_of_rows
from clfew.models.classifier import Classifier
from clfew.models.encoder import freeze_statistics
from clfew.training.batch import Batch

MOMENTUM = 0.99
"""The momentum of the running means of confidence and class probabilities. FreeMatch uses 0.999 for a
million steps; a student here is trained for hundreds."""


def distillation_loss(student_BxC: Tensor, teacher_BxC: Tensor, temperature: float) -> Tensor:
    """Returns T² · cross-entropy of the teacher's softened probabilities and the student's (SimCLRv2,
    section 2), one value per image. The factor T² keeps the size of the gradient (Hinton et al.,
    Distilling the Knowledge in a Neural Network, section 2).

    student_BxC: logits. teacher_BxC: probabilities at temperature 1; softened, p becomes p^(1/T) over
    its sum. temperature: above 0.
    """
    softened = torch.softmax(teacher_BxC.clamp(min=1e-8).log() / temperature, dim=1)
    scores = torch.log_softmax(student_BxC.float() / temperature, dim=1)
    return -(temperature**2) * (softened * scores).sum(dim=1)


def class_thresholds(confidence: Tensor, mean_C: Tensor) -> Tensor:
    """Returns FreeMatch's self-adaptive thresholds, τ(c) = τ · p(c) / max p.

    confidence: τ, the running mean confidence. mean_C: p, the running mean of the predicted
    probabilities; classes that are predicted less often get a lower threshold.
    """
    return confidence * mean_C / mean_C.max()


def aligned(probabilities_BxC: Tensor, mean_C: Tensor, prior_C: Tensor) -> Tensor:
    """Applies distribution alignment: returns p · prior / running mean of p, scaled to sum to 1."""
    scaled_BxC = probabilities_BxC * prior_C / mean_C.clamp(min=1e-6)
    return scaled_BxC / scaled_BxC.sum(dim=1, keepdim=True)


class Distillation(nn.Module):
    """Trains a student on two views of each image.

    batch.labels holds each image's row of `targets_MxC`, the teacher's probabilities (for a labelled
    image its label). prior_C: the expected class probabilities. weak, strong: how the two views are
    made. batch.images may also hold features of the student's backbone for V views of each image, (B, V,
    D): then the first view is the weak one, and a random one of the others is the strong one. The
    targets are computed before the training begins: one prediction of the teacher for each image, not
    one for each view.
    """

    targets: Tensor
    prior: Tensor
    confidence: Tensor
    shares: Tensor

    def __init__(
        self,
        student: Classifier,
        targets_MxC: Tensor,
        prior_C: Tensor,
        weak: Recipe,
        strong: Recipe,
        temperature: float = 1.0,
        frozen_statistics: bool = False,
    ) -> None:
        super().__init__()
        self.student, self.weak, self.strong = student, weak, strong
        self.temperature, self.frozen_statistics = temperature, frozen_statistics
        self.register_buffer("targets", targets_MxC, persistent=False)
        self.register_buffer("prior", prior_C, persistent=False)
        # Running means of the student's aligned confidence and of its class probabilities. FreeMatch
        # starts them from uniform probabilities; those of the teacher are a better start.
        self.register_buffer("confidence", targets_MxC.max(dim=1).values.mean())
        self.register_buffer("shares", targets_MxC.mean(dim=0))

    def train(self, mode: bool = True) -> "Distillation":
        super().train(mode)
        if self.frozen_statistics:
            freeze_statistics(self)
        return self

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.labels is not None
        weak_BxC, strong_BxC = self._logits(batch).float().chunk(2)
        targets_BxC = self.targets[batch.labels]
        distilled = distillation_loss(weak_BxC, targets_BxC, self.temperature).mean()
        confidence, guess, threshold = self._pseudo_labels(weak_BxC.detach())
        certain = (confidence > threshold).float()
        consistent = (F.cross_entropy(strong_BxC, guess, reduction="none") * certain).mean()
        agreement = (guess == targets_BxC.argmax(1)).float().mean()
        extras = {
            "confident": certain.mean(),
            "agreement": agreement,
            "threshold": self.confidence.clone(),
        }
        return distilled + consistent, extras

    def _logits(self, batch: Batch) -> Tensor:
        """Returns the student's logits for the weak views and then for the strong ones: (2B, C)."""
        if batch.images.ndim == 3:
            features_BxVxD = batch.images.float()
            random_B = to_device(batch.random.uniform(1, 1), features_BxVxD.device)[:, 0]
            strong_B = 1 + (random_B * (features_BxVxD.shape[1] - 1)).long()  # The index of the view.
            rows = torch.arange(len(strong_B), device=strong_B.device)
            both = torch.cat([features_BxVxD[:, 0], features_BxVxD[rows, strong_B]])
            return self.student.from_features(self.student.encoder.adapt(both))
        size, arrays = self.student.encoder.size, (batch.images, batch.aspects)
        weak = random_views(*arrays, size, self.weak, batch.random, views=1)
        strong = random_views(*arrays, size, self.strong, batch.random, views=1, first=1)
        return self.student(torch.cat([weak, strong]))

    @torch.no_grad()
    def _pseudo_labels(self, weak_BxC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the confidence, pseudo-label and threshold of each image, from the student's logits
        for the weak view. Updates the running means."""
        raw = torch.softmax(weak_BxC, dim=1)
        self.shares.lerp_(mean_of_rows(raw), 1 - MOMENTUM)
        probabilities = aligned(raw, self.shares, self.prior)
        confidence, guess = probabilities.max(dim=1)
        # The threshold is of what is compared with it, aligned probabilities, whose mean is the prior.
        self.confidence.lerp_(mean_of_rows(confidence), 1 - MOMENTUM)
        return confidence, guess, class_thresholds(self.confidence, self.prior)[guess]
