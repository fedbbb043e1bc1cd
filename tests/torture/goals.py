"""The goals of the stress tests, by name.

Each goal is a function of its sizes. It returns what was reached, and a list of what went wrong.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from tests.torture import (
    artifact_kinds,
    denoiser,
    files,
    galleries,
    guards,
    interrupts,
    models,
    saving,
    search,
    training,
)


class Goal(NamedTuple):
    """What is asked, and the function that tries it.

    Attributes:
        asked: What must be reached, in full size.
        run: The function.
        short: Its sizes in `make test`; None where `make test` runs the same tests elsewhere.
        full: Its sizes in `make torture`, where they are not the defaults.
    """

    asked: str
    run: Callable[..., tuple[Any, list[str]]]
    short: dict | None
    full: dict = {}


FOLDERS = tuple(kind for kind in artifact_kinds.ARTIFACTS if kind != "file")

GOALS = {
    "faults": Goal("the fault table: all faults pass", guards.fault_table, None),
    "kills": Goal("kill -9 in mid-save, 7 x 200: none lost", saving.killed_saves, {"times": 2}),
    "renames": Goal(
        "kill -9 between renames, 6 x 100: none lost",
        saving.killed_saves,
        None,
        {"times": 100, "kinds": FOLDERS, "exchange": False},
    ),
    "interrupts": Goal(
        "Ctrl-C, 11 x 200, 2 runs: nothing lost",
        interrupts.interrupts,
        {
            "times": 20,
            "kinds": ("index", "file"),
            "galleries": ("exact", "hnsw"),
            "runs": (),  # tests/test_resume.py interrupts training
        },
    ),
    "restarts": Goal(
        "kill -9 in training, 6 x 10: bit-equal",
        training.killed_runs,
        {"times": 1, "names": ("vae",), "epochs": 4},
    ),
    "mutants": Goal(
        "mutants, 10,000 a format: 0 wrong",
        files.mutants,
        {"count": 300, "forged": 20, "together": 99},
    ),
    "configs": Goal(
        "forged configs, 3 x 2,000: refused, 0 run",
        models.forged_configs,
        {"count": 40, "names": ("file",)},
    ),
    "weights": Goal(
        "changed weights, 3 x 1,000: refused or equal",
        models.changed_weights,
        {"count": 25, "names": ("file",)},
    ),
    "hostile-files": Goal(
        "60 hostile files refused, two versions",
        files.hostile_files,
        None,
        {"lowest": True},
    ),
    "unsafe-loaders": Goal("unsafe loaders: 0", files.unsafe_loaders, {}),
    "bombs": Goal("6 bombs refused, < 200 MB, < 2 s", files.bombs, {}),
    "images": Goal("24 images upright or named", files.images_of_every_kind, {}),
    "tiles": Goal(
        "800 images and files by tiles: as a whole",
        denoiser.tiles,
        {"count": 3, "files": 3},
    ),
    "search": Goal("3,000 cases, 60k x 60k in 1 GB", search.exact_search, None),
    "failing-calls": Goal(
        "n-th call fails, 7 x 100: none lost",
        saving.failing_calls,
        {"turns": range(1, 101, 11)},
    ),
    "concurrency": Goal(
        "2 x 200 appends, 1,000 reads: all",
        saving.concurrent_access,
        {"appends": 5, "reads": 60},
    ),
    "removals": Goal(
        "8,000 changes, 80 kills: as a model in Python",
        galleries.removals,
        {"runs": 1, "steps": 15, "kills": 1, "kinds": ("exact", "hnsw")},
    ),
    "threads": Goal(
        "2,400 queries while a thread changes: right",
        galleries.threads,
        {"queries": 20},
    ),
    "nan": Goal(
        "11 injections of NaN: error, finite",
        training.nan_injections,
        {"names": ("loss", "last step")},
    ),
    "seeds": Goal(
        "3 runs of a seed: equal",
        training.same_seeds,
        {"runs": 2, "names": ("vae",)},
    ),
    "guards": Goal(
        "each guard that is removed is noticed",
        guards.guards,
        {"names": ("fingerprint",)},
    ),
}
