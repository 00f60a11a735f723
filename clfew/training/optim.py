"""Optimizers, learning-rate schedule and parameter groups."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

OPTIMIZERS = ("lars", "sgd", "adamw")
LARGE_BATCH = 1024
SHORT_RUN_STEPS = 10_000
"""50 epochs of CIFAR-10 in batches of 256."""


def choose_pretraining(batch: int, steps: int, name: str = "auto") -> tuple[str, float, float, str]:
    """Optimizer, learning rate, weight decay for SimCLR, and the reason in a few words.

    LARS with 0.075·√batch for large batches (SimCLR, appendix B.1; weight decay of SimCLRv2),
    SGD with 0.06·batch/256 for long runs, AdamW for short ones, where it needs no tuning.
    """
    reason = "as asked for"
    if name == "auto":
        if batch >= LARGE_BATCH:
            name, reason = "lars", f"a batch of {batch} is large"
        elif steps < SHORT_RUN_STEPS:
            name, reason = "adamw", f"fewer than {SHORT_RUN_STEPS:,} steps"
        else:
            name, reason = "sgd", f"small batches, {SHORT_RUN_STEPS:,} steps or more"
    rate, decay = {
        "lars": (0.075 * math.sqrt(batch), 1e-4),
        "sgd": (0.06 * batch / 256, 5e-4),
        "adamw": (3e-3, 1e-4),
    }[name]
    return name, rate, decay, reason


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Linear warm-up over `warmup` steps, then a cosine from `peak` to 0 at `steps`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def parameter_groups(
    module: nn.Module, weight_decay: float, scale: Callable[[str], float] = lambda name: 1.0
) -> list[dict[str, Any]]:
    """Parameters by learning-rate scale and by whether they decay.

    BatchNorm's parameters and biases neither decay nor adapt under LARS (SimCLR, appendix A):
    they are the ones with at most one dimension. `scale` maps a parameter's name to the factor
    on its learning rate.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((scale(name), parameter.ndim > 1), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if adapts else 0.0,
         "lr_scale": factor, "adapts": adapts}
        for (factor, adapts), parameters in groups.items()
    ]  # fmt: skip


def build_optimizer(name: str, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
    if name == "lars":
        return LARS(groups, lr)
    if name == "sgd":
        return torch.optim.SGD(groups, lr, momentum=0.9, nesterov=True)
    # Not the fused one: it takes its state for laid out like the weights, which after a resume from
    # a file it is not.
    return torch.optim.AdamW(groups, lr, betas=(0.9, 0.99))


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (You et al., arXiv:1708.03888), as SimCLR trains with it.

    Momentum 0.9, trust coefficient 0.001. Groups with `adapts` False (BatchNorm, biases) are
    plain momentum SGD.
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
