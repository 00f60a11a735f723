"""The steps of a training, which several processes take together: each with its rows of the batch."""

import contextlib
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from clfew.errors import Stopped, UserError
from clfew.group import command as groups
from clfew.group.group import Group
from clfew.group.tensors import rows_of, smallest
from clfew.training.batch import Batch, Batches, TrainingData
from clfew.training.compilation import compiled
from clfew.training.convolution import TrainingConvolutions
from clfew.training.device import keep_freed_memory
from clfew.training.guard import Guard, NotFinite, require_finite
from clfew.training.optim import build_optimizer, parameter_groups
from clfew.training.plan import Plan
from clfew.training.whole_batch import WholeBatch

STEP, KEEP, BACK, END = range(4)
"""What the leader tells the others to do: take a step, keep what a step changes, go back to what was
kept, or end."""


class Order(NamedTuple):
    """A step. step: its number. rate: its learning rate. progress, after: the fraction of the training
    that is done before it and after it."""

    step: int
    rate: float
    progress: float
    after: float


_NO_STEP = Order(0, 0.0, 0.0, 0.0)


class Stepper:
    """Takes the steps of a training in this process, and in the others alike.

    `objective` and `optimizer` are as they were after the last step, unless `is_changing`. guard: see
    `Guard`.
    """

    def __init__(
        self, objective: Any, optimizer: torch.optim.Optimizer, plan: Plan, device: torch.device
    ) -> None:
        self.objective, self.optimizer, self._plan = objective, optimizer, plan
        self.guard = Guard(objective, optimizer, device)
        self.is_changing = False
        self._group = groups.current()
        self._loss: Callable[[Batch], tuple[Tensor, dict[str, Tensor]]] = objective.loss
        if self._group is not None:
            self._group.rows = rows_of(plan.batch)
            self._loss = _in_all_processes(objective)
            can_defer = torch.tensor(float(self.guard.can_defer), device=device)
            self.guard.can_defer = self.guard.is_deferred = bool(smallest(can_defer) > 0)

    def tell(self, what: int, order: Order = _NO_STEP) -> None:
        """Tells the other processes what this one does next."""
        if self._group is not None and (self.guard.can_defer or what in (STEP, END)):
            self._group.numbers([what, *order])

    def keep(self, step: int) -> None:
        """See `Guard.keep`."""
        self.tell(KEEP, Order(step, 0.0, 0.0, 0.0))
        self.guard.keep(step)

    def go_back(self, step: int) -> int:
        """See `Guard.go_back`."""
        self.tell(BACK, Order(step, 0.0, 0.0, 0.0))
        return self.guard.go_back(step)

    def end(self) -> None:
        """Tells the other processes that the training has ended."""
        if self._group is not None:
            self.tell(END)
            self._group.is_settled = True

    def take(self, batch: Batch, order: Order) -> tuple[Tensor, dict[str, Tensor]]:
        """Takes a step; returns the loss and what the objective logs, of the whole batch. Raises
        NotFinite, in all processes, before the optimizer's step."""
        plan, batch = self._plan, replace(batch, progress=order.progress)
        for group in self.optimizer.param_groups:
            group["lr"] = order.rate * group["lr_scale"]
        # So that dropout and stochastic depth, in encoders that have them, also resume exactly.
        torch.manual_seed((plan.seed * 1_000_003 + order.step) % 2**63)
        bf16 = torch.autocast(batch.images.device.type, torch.bfloat16, enabled=plan.precision == "bf16")
        own_gradients = not (plan.compile and self._group is None)
        by_image = getattr(self.objective, "rows_by_image", False)
        whole = WholeBatch(self._group, by_image) if self._group else contextlib.nullcontext()
        # A compiled network computes its gradients itself.
        with bf16, TrainingConvolutions(own_gradients), whole:
            loss, extras = self._loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        if self._group is None:
            loss.backward()
        else:
            loss, extras = self._backward(loss, extras, self._group)
        if self.guard.is_deferred:
            self.guard.note(loss)
        else:
            require_finite(loss, self.optimizer)
        self.is_changing = True
        self.optimizer.step()
        if hasattr(self.objective, "after_step"):
            self.objective.after_step(order.after)
        self.is_changing = False
        return loss.detach(), extras

    def _backward(
        self, loss: Tensor, extras: dict[str, Tensor], group: Group
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes the gradient of the mean over the whole batch. Returns the loss and what is logged as
        such means."""
        share = group.rows.count / group.rows.total
        # DistributedDataParallel divides the sum of all processes by their number.
        (loss * (share * group.size)).backward()
        values = [loss.detach(), *(each.detach() for each in extras.values())]
        means = torch.stack([value.double() for value in values]) * share
        dist.all_reduce(means, group=group.inner)
        mean, *others = (each.to(v.dtype) for each, v in zip(means, values, strict=True))
        return mean, dict(zip(extras, others, strict=True))


class _Objective(nn.Module):
    """An objective whose forward pass is its loss, as DistributedDataParallel needs it."""

    def __init__(self, objective: Any) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        result: tuple[Tensor, dict[str, Tensor]] = self.objective.loss(batch)
        return result


def _in_all_processes(objective: Any) -> DistributedDataParallel:
    """Returns the loss of the objective, whose gradients are averaged over the processes.

    BatchNorm's statistics are those of all processes already. Where parameters may be unused, as in a
    stacked method, the order in which gradients are summed never changes, so a resumed run takes exactly
    the steps that it would have taken.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # Newer versions have another name for the first.
        return DistributedDataParallel(
            _Objective(objective), broadcast_buffers=False, find_unused_parameters=True
        )


def prepare(objective: nn.Module, device: torch.device) -> None:
    keep_freed_memory(device)
    objective.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]


def in_all_processes(
    objective: nn.Module,
    data: TrainingData,
    plan: Plan,
    device: torch.device,
    scales: dict[str, float],
    state: dict[str, Any] | None,
    start: int,
    lead: Callable[[Stepper, Callable[[], bool]], None] | None = None,
) -> None:
    """What each process does in a training: the leader calls `lead` with its stepper and a function that
    returns whether a compiled network has been called; the others do what it tells them.

    scales: the factor on the learning rate of each parameter. state: the optimizer's state, None at the
    beginning. start: the number of steps taken before.
    """
    prepare(objective, device)
    groups_of = parameter_groups(objective, plan.weight_decay, lambda name: scales.get(name, 1.0))
    optimizer = build_optimizer(plan.optimizer, groups_of, plan.learning_rate)
    if state is not None:
        param_groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": param_groups})
    stepper = Stepper(objective, optimizer, plan, device)
    if lead is None:
        _follow(stepper, data, plan, device, start)
        return
    with compiled(objective, plan.compile and groups.current() is None) as is_called:
        try:
            lead(stepper, is_called)
        except (UserError, Stopped):  # Between two steps, or in all processes alike.
            stepper.end()
            raise
        stepper.end()


def _follow(stepper: Stepper, data: TrainingData, plan: Plan, device: torch.device, start: int) -> None:
    """Does what the leader tells until the training ends."""
    group = groups.current()
    assert group is not None
    at = start
    while True:
        with Batches(data, plan, device, at) as batches:
            what = STEP
            while what in (STEP, KEEP):
                number, *order = group.numbers([0.0] * 5)
                what, step = int(number), int(order[0])
                if what == KEEP:
                    stepper.guard.keep(step)
                elif what == STEP:
                    stepper.guard.before()
                    try:
                        stepper.take(next(batches), Order(step, *order[1:]))
                    except NotFinite:
                        stepper.guard.undo()
        if what == END:
            return
        at = stepper.guard.go_back(step)
