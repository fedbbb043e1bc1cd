"""Search: exact neighbors, compared with float64 arithmetic, and the memory of a large search."""

import subprocess
import sys

from tests.torture.children import ROOT

_SEARCH_ALL = """
import numpy as np
from kerasim.neighbors import NeighborIndex

x = np.random.default_rng(0).normal(size=({n}, 64)).astype("float32")
assert (NeighborIndex("euclidean").fit(x).query(x, 10)[1][:, 0] == np.arange(len(x))).all()
status = open("/proc/self/status").read()
print(int(status.split("VmHWM:")[1].split()[0]) // 1024)
"""


def exact_search(cases=1000, rows=60_000):
    """Compares the index with a float64 oracle, and searches all vectors among themselves."""
    from threadpoolctl import threadpool_limits

    from kerasim.neighbors import METRICS
    from tests.helpers.search_oracle import difference_from_oracle, draw_case

    wrong = []
    with threadpool_limits(1):
        for metric in METRICS:
            for seed in range(cases):
                said = difference_from_oracle(*draw_case(seed), metric)
                wrong += [f"{metric}, case {seed}: {said}"] if said else []
    reached = f"{3 * cases - len(wrong)} of {3 * cases} equal"
    if rows:
        code = [sys.executable, "-c", _SEARCH_ALL.format(n=rows)]
        peak = int(subprocess.run(code, cwd=ROOT, capture_output=True, check=True).stdout)
        reached += f", {rows} x {rows} within {peak} MB"
        wrong += [f"all against all took {peak} MB"] if peak >= 1000 else []
    return reached, wrong
