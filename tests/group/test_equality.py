"""Two processes with half of a batch each take the steps that one takes with the whole batch."""

import json
from pathlib import Path

import equality
import pytest
from launched import torchrun

pytestmark = pytest.mark.slow

ONE_STEP = [
    f"{case}, {kind}"
    for case in (*equality.CASES, *equality.FURTHER)
    for kind in (equality.DOUBLE, equality.REMAINDER)
]
TWENTY_STEPS = [f"{case}, {equality.TWENTY}" for case in equality.CASES]


@pytest.fixture(scope="module")
def differences(tmp_path_factory):
    out = tmp_path_factory.mktemp("equality") / "differences.json"
    code, _, stderr = torchrun(Path(equality.__file__), out)
    assert code == 0, stderr
    return json.loads(out.read_text())


@pytest.mark.parametrize("case", ONE_STEP)
def test_a_step_is_that_of_the_whole_batch(differences, case):
    """The loss, all that is logged and the gradients, in float64; also of a batch with a remainder."""
    found = differences[case]
    assert found["same"]
    assert max(found[name] for name in ("loss", "logged", "gradients", "weights")) < 1e-5


@pytest.mark.parametrize("case", TWENTY_STEPS)
def test_twenty_steps_stay_those_of_the_whole_batch(differences, case):
    found = differences[case]
    assert found["same"]
    assert max(found["loss"], found["weights"]) < 1e-3


@pytest.mark.parametrize("mistake", equality.MISTAKES)
def test_mistakes_that_are_often_made_show(differences, mistake):
    """The tests above fail with each of them."""
    found = differences[mistake]
    assert max(found["loss"], found["gradients"]) > 1e-3
