"""Import times, best of five new processes each. Reach: `import kerasim` under 0.3 s."""

import subprocess
import sys

import pandas as pd

TIMED = "import time; s = time.perf_counter(); import {}; print(time.perf_counter() - s)"


def main():
    rows = []
    for module in ("kerasim", "keras"):
        command = [sys.executable, "-c", TIMED.format(module)]
        runs = [subprocess.run(command, capture_output=True, text=True) for _ in range(5)]
        rows.append((module, min(float(run.stdout) for run in runs)))
    print(
        pd.DataFrame(rows, columns=["import", "seconds"]).set_index("import").round(3).to_string()
    )


if __name__ == "__main__":
    main()
