"""What a file system does to a program: pipes that block, folders that are closed to it."""

import contextlib
import os
import threading

import pytest


@contextlib.contextmanager
def no_hang(pipe):
    """Lets a reader that opens `pipe` go on after ten seconds, so that the test can fail."""

    def unblock():
        with contextlib.suppress(OSError):
            os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))

    os.mkfifo(pipe)
    watchdog = threading.Timer(10, unblock)
    watchdog.start()
    try:
        yield
    finally:
        watchdog.cancel()


@contextlib.contextmanager
def unprivileged():
    """Runs the block as a user whom permissions bind."""
    root = os.geteuid() == 0
    if root:
        try:
            os.seteuid(65534)
        except OSError:
            pytest.skip("permissions do not bind root, and this root cannot become another")
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
