"""The short form of make torture: the same functions, with small sizes."""

import pytest

from tests import torture

SHORT = {name: goal for name, goal in torture.GOALS.items() if goal[2] is not None}
ROWS = {  # of docs/faults.md that a goal holds
    **{"G2": (20, 21), "G3": (22,), "G4": (15,), "G7": (8, 9, 53), "G8": (49, 50, 51)},
    **{"G10": (23,), "G11": (64,), "G12": (33,), "G13": (41, 42)},
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.fault(*ROWS[name])] if name in ROWS else [])
        for name in SHORT
    ],
)
def test_a_goal_is_reached_at_small_sizes(name):
    _, function, sizes = SHORT[name]
    reached, wrong = function(**sizes)
    print(name, reached)
    assert not wrong


def test_a_child_that_dies_or_raises_is_an_error():
    for task, said in ((torture._die, "-9"), (torture._raise, "ZeroDivisionError")):
        with pytest.raises(AssertionError, match=said):
            torture.ask(task)
