"""Pipes that block, and folders without permission."""

import contextlib
import os
import threading

import pytest


@contextlib.contextmanager
def no_hang(pipe):
    """Creates `pipe`, and unblocks a reader after ten seconds, so that the test fails."""

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
    """Runs the block as a user without the rights of root."""
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
