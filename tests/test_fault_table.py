"""The table in docs/faults.md, the marks of the tests, and the line at the end of a run."""

from types import SimpleNamespace

import pytest

from tests import conftest
from tests.helpers.fault_table import TESTS, marked, names, summary


def test_each_fault_of_the_table_has_a_name_of_its_own():
    assert len(names()) == len(set(names())) == 76


def test_the_faults_of_the_table_are_those_that_tests_are_marked_with():
    assert {name for path in TESTS.glob("test_*.py") for name in marked(path)} == set(names())


def test_a_test_that_is_marked_with_an_unknown_fault_is_an_error():
    item = SimpleNamespace(
        path=TESTS / "test_house.py",
        nodeid="test_house.py::test_it",
        get_closest_marker=lambda name: None,
        iter_markers=lambda kind: [SimpleNamespace(args=("no-such-fault",))],
        user_properties=[],
    )
    with pytest.raises(pytest.UsageError, match="test_it is marked with no-such-fault"):
        conftest.pytest_collection_modifyitems([item])


def report(*faults):
    return SimpleNamespace(user_properties=[("fault", name) for name in faults])


@pytest.mark.parametrize(
    ("stats", "line"),
    [
        ({"passed": [report()], "": [report("a")]}, ""),
        (
            {"passed": [report("a", "b"), report("b")]},
            "fault table: tests of 2 of 76 faults ran, all passed",
        ),
        (
            {"passed": [report("a")], "skipped": [report("a"), report("e")]},
            "fault table: tests of 1 of 76 faults ran, 1 skipped: e, all passed",
        ),
        (
            {"passed": [report("a")], "failed": [report("a", "c")], "error": [report("d")]},
            "fault table: tests of 3 of 76 faults ran, 3 failed: a, c, d",
        ),
        ({"skipped": [report("e")]}, "fault table: tests of 0 of 76 faults ran, 1 skipped: e"),
    ],
)
def test_the_line_at_the_end_counts_faults_by_the_outcomes_of_their_tests(stats, line):
    assert summary(stats) == line
