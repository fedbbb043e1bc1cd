"""An interrupt (Ctrl-C) at a chosen line of kerasim."""

import contextlib
import os
import sys

import kerasim

_PACKAGE = os.path.dirname(kerasim.__file__)


@contextlib.contextmanager
def at_line(number, files=None):
    """Raises KeyboardInterrupt when that many lines of kerasim have run in the block.

    Args:
        number: Counted from 1; 0 for no interrupt.
        files: The files whose lines count; None for all of kerasim.

    Yields:
        A list of one number, the lines that have run so far.
    """
    lines = [0]

    def trace(frame, event, argument):
        file = frame.f_code.co_filename
        if not (file.startswith(_PACKAGE) if files is None else file in files):
            return None
        lines[0] += event == "line"
        if event == "line" and lines[0] == number:
            sys.settrace(None)
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield lines
    finally:
        sys.settrace(before)
