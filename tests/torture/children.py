"""Processes of their own for what may die, hang or fill the memory.

A child is forked from a server that has loaded the libraries and nothing else.
"""

import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import tqdm

ROOT = Path(__file__).resolve().parents[2]
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tensorflow", "kerasim.gallery", "kerasim.export"])


@contextlib.contextmanager
def start_child(task, *args):
    """Runs `task(*args, send)` in a process; yields it and the pipe of its messages."""
    receiver, sender = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_run, args=(task, args, sender))
    process.start()
    sender.close()
    try:
        yield process, receiver
    finally:
        process.kill()
        process.join()
        receiver.close()


def _run(task, args, sender):
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    warnings.simplefilter("ignore")
    tqdm.tqdm.set_lock(threading.RLock())  # its own outlives those that are killed
    try:
        sender.send(("result", task(*args, sender.send)))
    except Exception:
        sender.send(("error", traceback.format_exc()))


def run_child(task, *args) -> Any:
    """Returns what `task` returns in a child, and fails if the child dies or raises an error."""
    with start_child(task, *args) as (process, messages):
        what, value = last_message(messages)
        process.join(30)
        if what != "result":
            raise AssertionError(f"{task.__name__}{args}: {value or process.exitcode}")
        return value


def last_message(messages) -> tuple[str, Any]:
    """Waits for the end of a child, and returns its last message; ("nothing", None) for none."""
    found = "nothing", None
    with contextlib.suppress(EOFError):
        while True:
            found = messages.recv()
    return found


_DANGEROUS_EVENTS = {"os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen"} | {
    *("pickle.find_class", "socket.connect", "shutil.rmtree")
}


class Watch:
    """Notes what a loader must not do, while `on` is True: it lasts as long as the process.

    Args:
        scratch: The one folder in which a loader may write, and remove what it wrote there itself.
        canary: Name of a module that it must not import.
    """

    def __init__(self, scratch, canary=None):
        self.on, self.found = False, []
        self._scratch, self._canary = Path(scratch), canary
        sys.addaudithook(self._audit)

    def _audit(self, event, args):
        if not self.on:
            return
        dangerous = event in _DANGEROUS_EVENTS or (event == "import" and args[0] == self._canary)
        if event == "open" and isinstance(args[0], str) and isinstance(args[2], int):
            written = args[2] & os.O_ACCMODE and not args[0].startswith("/dev/")
            dangerous = written and "__pycache__" not in args[0]
        if dangerous and self._scratch not in Path(str(args[0])).resolve().parents:
            self.found.append((event, str(args)[:80]))


def die(send):
    os.kill(os.getpid(), signal.SIGKILL)


def raise_error(send):
    raise ZeroDivisionError


def memory_mb(what):
    """Returns "VmRSS", "VmHWM" (the peak) or "VmSize" of this process, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{what}:\s+(\d+)", status)[1]) // 1024


def reset_peak_memory():
    """Lets "VmHWM" start again from what the process holds now."""
    Path("/proc/self/clear_refs").write_text("5")


def drain(messages, found):
    """Returns the last message before the end of a child, `found` if there is none."""
    with contextlib.suppress(EOFError):
        while True:
            found = messages.recv()
    if isinstance(found, tuple) and found[0] == "error":
        raise AssertionError(found[1])
    return found


def run_tests(args, path: Path | str = ROOT, cwd=ROOT):
    """Runs tests in a process of its own, and returns how many passed and failed."""
    with tempfile.NamedTemporaryFile(suffix=".xml") as report:
        env = {**os.environ, "PYTHONPATH": str(path)}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *args]
        done = subprocess.run(
            [*command, f"--junitxml={report.name}"], cwd=cwd, env=env, capture_output=True
        )
        if done.returncode not in (0, 1):
            raise AssertionError(f"{args}: {done.stdout.decode()[-2000:]}{done.stderr.decode()}")
        suite = xml.etree.ElementTree.parse(report.name).getroot()[0]
        counts = {
            key: int(suite.get(key) or 0) for key in ("tests", "failures", "errors", "skipped")
        }
    failed = counts["failures"] + counts["errors"]
    return counts["tests"] - failed - counts["skipped"], failed
