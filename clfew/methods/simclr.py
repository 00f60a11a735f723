"""SimCLR: two random views of an image attract, views of other images repel.

Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020
(equation 1, appendix A), with the three-layer projector of SimCLRv2 (Chen et al., Big
Self-Supervised Models are Strong Semi-Supervised Learners, NeurIPS 2020, section 3).

Shape suffixes: B images in the batch, D features, P projected features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clfew.data.augment import Recipe, random_views
from clfew.errors import UsageError
from clfew.group.tensors import own_rows, whole
from clfew.methods.base import Method, Pictures
from clfew.methods.collapse import health
from clfew.models.encoder import Encoder
from clfew.training.batch import Batch

LOSSES = ("nt-xent", "dcl")


def is_decoupled(loss: str) -> bool:
    """Returns whether the loss named `loss` is the decoupled one. Raises UsageError for an unknown
    name."""
    if loss not in LOSSES:
        raise UsageError(f"--loss {loss} is not known.", f"choose {' or '.join(LOSSES)}.")
    return loss == "dcl"


def nt_xent(z_2BxP: Tensor, temperature: float, decoupled: bool = False) -> Tensor:
    """Returns NT-Xent (SimCLR, equation 1), the mean over the 2B ordered positive pairs (i, i + B).

    Where several processes hold parts of the batch, the mean is over this one's pairs, among the
    negatives of all, N images in place of its B.

    Similarities and their log-sum-exp are computed in float32 whatever the autocast: bfloat16
    keeps 8 bits, too few for a softmax at low temperature. `decoupled` leaves the positive out of
    the denominator (Yeh et al., Decoupled Contrastive Learning, ECCV 2022, equation 6), which
    helps small batches.
    """
    with torch.autocast(z_2BxP.device.type, enabled=False):
        z_2BxP = F.normalize(z_2BxP.float(), dim=1)
        z_2NxP = whole(z_2BxP, views=2)
        similarity_2Bx2N = z_2BxP @ z_2NxP.T / temperature
        images, device = own_rows(len(z_2BxP) // 2), z_2BxP.device
        first_B = torch.arange(images.start, images.start + images.count, device=device)
        own_2B = torch.cat([first_B, first_B + images.total])
        partner_2B = own_2B.roll(images.count)
        rows_2B = torch.arange(len(z_2BxP), device=device)
        positive = similarity_2Bx2N[rows_2B, partner_2B]
        excluded = torch.zeros_like(similarity_2Bx2N, dtype=torch.bool)
        excluded[rows_2B, own_2B] = True
        if decoupled:
            excluded[rows_2B, partner_2B] = True
        return (similarity_2Bx2N.masked_fill(excluded, -torch.inf).logsumexp(dim=1) - positive).mean()


def projector(dim: int, hidden: int, output: int) -> nn.Sequential:
    """Returns three linear layers, with BatchNorm after each and ReLU between them, as
    google-research/simclr builds them for SimCLRv2 (`model_util.projection_head`).

    BatchNorm makes biases redundant, so the linear layers have none.
    """

    def layer(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs)]

    return nn.Sequential(
        *layer(dim, hidden), nn.ReLU(), *layer(hidden, hidden), nn.ReLU(), *layer(hidden, output)
    )


class SimCLR(Method):
    """The encoder, its projector and the loss over two views of each image.

    temperature: 0.1 to 0.5 (SimCLR, table 5: 0.1 for ImageNet and large batches, 0.5 for long runs
        on small images). The default, 0.2, lies between them and is for short runs.
    loss: "nt-xent" or "dcl" (see `nt_xent`).
    """

    def __init__(
        self,
        encoder: Encoder,
        recipe: Recipe,
        gentle: bool = False,
        temperature: float = 0.2,
        loss: str = "nt-xent",
    ) -> None:
        super().__init__(encoder, recipe, gentle)
        self.temperature, self.decoupled = temperature, is_decoupled(loss)
        self.projector = projector(encoder.dim, min(2 * encoder.dim, 2048), 128)

    def views(self, batch: Batch) -> Tensor:
        size = self.encoder.size
        return random_views(batch.images, batch.aspects, size, self.recipe, batch.random)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        z_2BxP = self.projector(self.encoder(self.views(batch)))
        loss = nt_xent(z_2BxP, self.temperature, self.decoupled)
        return loss, health(z_2BxP)

    @torch.no_grad()
    def pictures(self, batch: Batch) -> Pictures:
        first, second = self.views(batch).chunk(2)
        return [("one view", first), ("another view", second)]
