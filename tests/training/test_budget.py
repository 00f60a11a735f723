import math

import numpy as np
import pytest
import torch
from torch import nn

from clfew.errors import UsageError
from clfew.training.batch import TrainingData
from clfew.training.budget import Budget, PlanOptions, plan_within
from clfew.training.optim import gentle_pretraining

DATA = TrainingData(np.empty(0), np.empty(0), np.arange(100))


def plan(epochs=None, minutes=None):
    return plan_within(
        Budget(epochs, minutes, 20, 10),
        nn.Identity(),
        DATA,
        torch.device("cpu"),
        PlanOptions(10, lambda steps: gentle_pretraining(), None, 0, "fp32", "off"),
    )


@pytest.mark.parametrize(("epochs", "steps"), [(3, 30), (2.55, 26), (1e-9, 1), (1e13, 10**14)])
def test_epochs_become_whole_steps(epochs, steps):
    assert plan(epochs).steps == steps


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, -1.0, 1e300])
@pytest.mark.parametrize("option", ["epochs", "minutes"])
def test_an_invalid_budget_is_a_usage_error(option, value):
    with pytest.raises(UsageError, match=f"--{option} .* is not a valid budget") as error:
        plan(**{option: value})
    assert error.value.hint.startswith("give a number below")
