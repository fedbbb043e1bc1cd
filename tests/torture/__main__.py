"""Prints what was asked of the package beside what it reached: make torture.

    python -m tests.torture [--short] [goal ...] [size=value ...]

Such as `python -m tests.torture mutants count=500 names=keras,npz`. Without a goal all of them are
tried. tests/test_torture.py calls the same functions with small sizes, as `--short` does.
"""

import os
import sys
import time
import traceback


def sizes_of(args) -> dict:
    """Returns the sizes among the arguments: integers, or tuples of names."""
    given = dict(arg.split("=") for arg in args if "=" in arg)
    return {
        name: int(value) if value.isdigit() else tuple(value.split(","))
        for name, value in given.items()
    }


def main(args) -> int:
    from tests.torture.goals import GOALS

    short = "--short" in args
    names = [arg for arg in args if arg != "--short" and "=" not in arg] or list(GOALS)
    unknown = [name for name in names if name not in GOALS]
    if unknown:
        print(f"There is no goal {', '.join(unknown)}. Choose from: {', '.join(GOALS)}.")
        return 2
    missed, broken = [], []
    for name in names:
        goal = GOALS[name]
        if short and goal.short is None:
            continue
        start = time.perf_counter()
        try:
            sizes = goal.short if short else goal.full
            reached, wrong = goal.run(**{**(sizes or {}), **sizes_of(args)})
        except Exception:  # the goal could not be tried, which is not the same as missed
            traceback.print_exc()
            broken.append(name)
            continue
        seconds = time.perf_counter() - start
        print(f"{name:14} {goal.asked:46} | {reached} | {seconds:.0f} s", flush=True)
        for text in wrong[:20]:
            print(f"     {text}", flush=True)
        missed += [name] if wrong else []
    for what, some in (("missed", missed), ("broken", broken)):
        print(f"{what}: {', '.join(some)}" if some else f"{what}: none")
    return 2 if broken else 1 if missed else 0


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main(sys.argv[1:]))
