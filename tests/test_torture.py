"""The short form of make torture: the same functions, with small sizes."""

import re

import pytest

from tests.torture import children, files
from tests.torture.goals import GOALS

FAULTS = {  # of docs/faults.md that a goal covers
    "kills": ("killed-save", "killed-export"),
    "interrupts": ("interrupt",),
    "restarts": ("killed-training",),
    "mutants": ("random-damage",),
    "configs": ("malicious-model",),
    "weights": ("weights-of-another-model",),
    "bombs": ("archive-bomb", "oversized-claim", "huge-image"),
    "images": ("unreadable-images", "pixel-formats", "exif-rotation"),
    "failing-calls": ("failing-write",),
    "concurrency": ("concurrent-writers",),
    "nan": ("nan-in-training",),
    "seeds": ("seeded-shuffling", "equal-seeds"),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.fault(*FAULTS[name])] if name in FAULTS else [])
        for name, goal in GOALS.items()
        if goal.short is not None
    ],
)
def test_a_goal_is_reached_at_small_sizes(name):
    goal = GOALS[name]
    reached, wrong = goal.run(**goal.short)
    print(name, reached)
    assert not wrong


@pytest.mark.parametrize(
    ("task", "said"), [(children.die, "-9"), (children.raise_error, "ZeroDivisionError")]
)
def test_a_child_that_dies_or_raises_is_an_error(task, said):
    with pytest.raises(AssertionError, match=said):
        children.run_child(task)


def test_the_tests_that_open_hostile_files_exist():
    name, selection = files.HOSTILE
    source = (children.ROOT / "tests" / name).read_text("utf-8")
    for words in selection.split(" or "):
        assert re.search(rf"^def test_\w*{words}", source, re.M), words
