"""Optimizers, the learning-rate schedule and parameter groups."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

OptimizerChoice = tuple[str, float, float, str]
"""Name, peak learning rate, weight decay, and the reason in a few words."""

OPTIMIZERS = ("lars", "sgd", "adamw", "muon")
LARGE_BATCH = 1024
SMALL_NETWORK = 2_000_000
"""Parameters. In larger networks on a CPU, Muon's matrix products cost more time than they save."""
KEPT_FRACTION, ENCODER_RATE = 0.5, 0.1
"""For pretrained weights: the fraction of the layers that is frozen, counted from the input, and the
learning rate of the other layers as a fraction of that of a new layer."""

SHORT_RUN_STEPS = 10_000
"""About 50 epochs of CIFAR-10 in batches of 256."""


def choose_pretraining(batch: int, steps: int, parameters: int, name: str = "auto") -> OptimizerChoice:
    """Chooses the optimizer with which SimCLR trains randomly initialised weights.

    It is LARS with learning rate 0.075·√batch for large batches (SimCLR, appendix B.1; weight decay of
    SimCLRv2) and Muon for small networks. Larger networks take SGD with learning rate 0.06·batch/256 in
    long runs and AdamW in short ones.
    """
    reason = "as asked for"
    if name == "auto":
        if batch >= LARGE_BATCH:
            name, reason = "lars", f"a batch of {batch} is large"
        elif parameters <= SMALL_NETWORK:
            name, reason = "muon", "a small network"
        elif steps < SHORT_RUN_STEPS:
            name, reason = "adamw", f"fewer than {SHORT_RUN_STEPS:,} steps"
        else:
            name, reason = "sgd", f"small batches, {SHORT_RUN_STEPS:,} steps or more"
    rate, decay = {
        "lars": (0.075 * math.sqrt(batch), 1e-4),
        "sgd": (0.06 * batch / 256, 5e-4),
        "adamw": (3e-3, 1e-4),
        "muon": (0.03, 0.0),
    }[name]
    return name, rate, decay, reason


def gentle_pretraining(name: str = "auto") -> OptimizerChoice:
    """Chooses the optimizer with which SimCLR trains pretrained weights. The projector takes its
    learning rate, the encoder ENCODER_RATE times as much."""
    chosen = "adamw" if name == "auto" else name
    rate, decay = {"lars": (0.1, 1e-4), "sgd": (0.03, 1e-4), "adamw": (1e-3, 1e-4), "muon": (3e-3, 0.0)}[
        chosen
    ]
    return (
        chosen,
        rate,
        decay,
        "small steps, to preserve the pretrained weights" if name == "auto" else "as asked for",
    )


def learning_rate(step: float, steps: float, warmup: int, peak: float) -> float:
    """Returns the learning rate of a step: a linear warm-up over `warmup` steps, then a cosine from
    `peak` to 0 at `steps`. Under a new plan, a step may lie between two whole numbers."""
    if step < warmup:
        return peak * min(step + 1, warmup) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def parameter_groups(
    module: nn.Module, weight_decay: float, scale: Callable[[str], float] = lambda name: 1.0
) -> list[dict[str, Any]]:
    """Groups the trainable parameters by the scale of their learning rate and by whether they decay.

    BatchNorm's parameters and biases have neither weight decay nor LARS's adaptive rate (SimCLR,
    appendix A). They are the parameters with at most one dimension. `scale` maps a parameter's name to
    the factor on its learning rate.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((scale(name), parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": weight_decay if adapts else 0.0,
            "lr_scale": factor,
            "adapts": adapts,
        }
        for (factor, adapts), parameters in groups.items()
    ]


def build_optimizer(name: str, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
    if name == "lars":
        return LARS(groups, lr)
    if name == "muon":
        return Muon(groups, lr)
    if name == "sgd":
        return torch.optim.SGD(groups, lr, momentum=0.9, nesterov=True)
    # Not the fused one: it assumes that its state has the memory layout of the weights, which is not so
    # after a resume from a file.
    return torch.optim.AdamW(groups, lr, betas=(0.9, 0.99))


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (You et al., arXiv:1708.03888), as SimCLR uses it.

    The momentum is 0.9 and the trust coefficient 0.001. Groups with `adapts` False (BatchNorm, biases)
    are trained with plain momentum SGD.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], lr: float, momentum: float = 0.9, trust: float = 1e-3
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "trust": trust, "weight_decay": 0.0, "adapts": True}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                gradient = weight.grad + group["weight_decay"] * weight
                rate: Tensor | float = group["lr"]
                if group["adapts"]:
                    norm, gradient_norm = weight.norm(), gradient.norm()
                    ratio = group["trust"] * norm / gradient_norm
                    usable = (norm > 0) & (gradient_norm > 0)
                    rate = group["lr"] * torch.where(usable, ratio, torch.ones_like(ratio))
                state = self.state[weight]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(weight)
                state["momentum"].mul_(group["momentum"]).add_(gradient * rate)
                weight.sub_(state["momentum"])


class Muon(torch.optim.Optimizer):
    """Momentum SGD whose update matrices are made orthogonal (Jordan et al., Muon, 2024).

    Each weight of two or more dimensions is treated as a matrix with one row for each output. Its
    update is the matrix nearest to the momentum whose singular values are all about 1, so that rarely
    used directions learn as fast as dominant ones. The Nesterov momentum is 0.95. Groups with `adapts`
    False (BatchNorm, biases) take Adam's steps (betas 0.9 and 0.99) at a tenth of the learning rate.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0, "adapts": True})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                    if not group["adapts"]:
                        state["square"] = torch.zeros_like(weight)
                        state["step"] = torch.zeros(())
                if group["adapts"]:
                    state["momentum"].lerp_(weight.grad, 0.05)
                    direction = orthogonalised(weight.grad.lerp(state["momentum"], 0.95).flatten(1))
                    rows, columns = direction.shape
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    scale = max(1.0, rows / columns) ** 0.5
                    weight.sub_(direction.view(weight.shape), alpha=group["lr"] * scale)
                else:
                    state["step"] += 1
                    state["momentum"].lerp_(weight.grad, 0.1)
                    state["square"].lerp_(weight.grad.square(), 0.01)
                    mean = state["momentum"] / (1 - 0.9 ** state["step"])
                    root = (state["square"] / (1 - 0.99 ** state["step"])).sqrt_().add_(1e-8)
                    weight.sub_(mean / root, alpha=0.1 * group["lr"])


def orthogonalised(matrix_RxC: Tensor) -> Tensor:
    """Returns about U·Vᵀ of the singular value decomposition: singular values between 0.7 and 1.2.

    It takes five Newton-Schulz steps with the quintic coefficients of Jordan et al. Each step multiplies
    the matrix by a polynomial in its Gram matrix. So the steps are taken on the small Gram matrix, and
    the product of all polynomials is applied once at the end.
    """
    rows, columns = matrix_RxC.shape
    x = matrix_RxC.T if rows > columns else matrix_RxC
    x = x / (x.norm() + 1e-7)
    gram = x @ x.T
    product = factor = _quintic(gram)
    for _ in range(4):
        gram = factor @ gram @ factor
        factor = _quintic(gram)
        product = factor @ product
    x = product @ x
    return x.T if rows > columns else x


def _quintic(gram: Tensor) -> Tensor:
    """Returns 3.4445 - 4.7750·gram + 2.0315·gram²."""
    result = torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
    result.diagonal().add_(3.4445)
    return result
