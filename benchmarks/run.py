"""Runs all benchmarks, one after another, and writes what they print to `runs/benchmarks.md`.

`python benchmarks/run.py [SCRIPT ...]` runs some; the earlier output of the others is kept. The
table in `README.md` holds the figures of the last full measurement: update it by hand.
"""

import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
SCRIPTS = (
    *("search", "peers", "gallery folder", "gallery exact", "gallery mixture", "gallery normal"),
    *("scale", "imports", "memory", "quality", "pairs", "epochs", "backbones"),
    *("near_duplicates", "diffusion", "denoising labels", "files mnist", "files photos"),
)
HEAD = """# Output of `make bench`

Written by `benchmarks/run.py`. `benchmarks/README.md` lists the figures with their data and peers.
"""


def processor():
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.machine()


def main(names):
    path = HERE.parent / "runs" / "benchmarks.md"
    path.parent.mkdir(exist_ok=True)
    sections = {}
    if path.exists():
        parts = re.split(r"^## (.*)\n", path.read_text(), flags=re.MULTILINE)[1:]
        sections = dict(zip(parts[::2], parts[1::2], strict=True))
    for name in names:
        print(f"{name} ...", flush=True)
        start = time.perf_counter()
        script, *rest = name.split()
        command = [sys.executable, str(HERE / f"{script}.py"), *rest]
        done = subprocess.run(command, capture_output=True, text=True)
        print(done.stdout)
        said = done.stdout.rstrip() + (
            f"\n\nIt ended with an error:\n{done.stderr.rstrip().splitlines()[-1]}"
            if done.returncode
            else ""
        )
        minutes = (time.perf_counter() - start) / 60
        sections[name] = (
            f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, {processor()}, Python "
            f"{platform.python_version()}, {minutes:.1f} minutes.\n\n```\n{said.strip()}\n```"
        )
        known = [f"## {key}\n\n{sections[key].strip()}\n" for key in SCRIPTS if key in sections]
        whole = path.with_suffix(".part")
        whole.write_text("\n".join([HEAD, *known]))
        os.replace(whole, path)


if __name__ == "__main__":
    main(sys.argv[1:] or SCRIPTS)
