"""Runs `pip install` with its arguments and shows one line of progress.

pip either prints a thousand lines or, with -q, nothing for minutes. This shows which package is
being downloaded and how many are installed; if pip fails, its output follows.
"""

import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

# Python compiles a module when it is first imported; to compile all of them here takes minutes.
OPTIONS = ["--disable-pip-version-check", "--no-compile", "--progress-bar", "off"]
SITE_PACKAGES = Path(sysconfig.get_path("purelib"))
SECONDS_BETWEEN_LINES = 10  # where the output is not a terminal
# A mirror that is a folder lacks most packages, and pip warns of each of them.
NOISE = "WARNING: Location 'file:"


class Progress:
    """What pip is doing, from the lines that it prints and the packages on the disk."""

    def __init__(self):
        self.started = time.monotonic()
        self.before = count_installed()
        self.collected = 0
        self.to_install = 0
        self.now = "looking up packages"

    def read(self, line: str) -> None:
        """Takes note of a line of pip's output."""
        words = line.split()
        if line.startswith(("Collecting ", "Processing ")):
            self.collected += 1
            self.now = Path(words[1]).name
        elif line.startswith("  Downloading "):
            self.now = " ".join([Path(words[1]).name, *words[2:]])
        elif line.startswith("Installing collected packages:"):
            self.to_install = line.count(",") + 1

    def __str__(self):
        seconds = f"{time.monotonic() - self.started:4.0f} s"
        if self.to_install:
            done = min(count_installed() - self.before, self.to_install)
            return f"{seconds}  installing: {done} of {self.to_install} packages are done"
        return f"{seconds}  package {self.collected}: {self.now}"


def count_installed() -> int:
    """Returns how many packages are installed in this environment."""
    return sum(1 for _ in SITE_PACKAGES.glob("*.dist-info"))


def show(progress: Progress, finished: threading.Event) -> None:
    """Prints the progress every second on a terminal, and every few seconds elsewhere."""
    terminal = sys.stdout.isatty()
    while not finished.wait(1 if terminal else SECONDS_BETWEEN_LINES):
        line = str(progress)
        print(f"\r{line[:78]:78}" if terminal else line, end="" if terminal else "\n", flush=True)
    if terminal:
        print(f"\r{'':78}\r", end="")


def main() -> int:
    """Returns pip's exit code."""
    print(f"pip install {' '.join(sys.argv[1:])}", flush=True)
    progress, finished, output = Progress(), threading.Event(), []
    with subprocess.Popen(
        [sys.executable, "-m", "pip", "install", *OPTIONS, *sys.argv[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as pip:
        display = threading.Thread(target=show, args=(progress, finished))
        display.start()
        for line in pip.stdout:
            if not line.startswith(NOISE):
                output.append(line)
            progress.read(line)
        finished.set()
        display.join()
    if pip.returncode:
        print("".join(output), end="")
    else:
        print("".join(line for line in output if line.startswith("WARNING")), end="")
        changed = progress.to_install or "no"
        print(f"{time.monotonic() - progress.started:4.0f} s  {changed} packages installed")
    return pip.returncode


if __name__ == "__main__":
    sys.exit(main())
