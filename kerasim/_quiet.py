"""Imports Keras without the log lines that TensorFlow writes to the terminal.

TensorFlow 2.21 writes lines such as "WARNING: All log messages before absl::InitializeLog()" and
"oneDNN custom operations are on" while it is imported, whatever `TF_CPP_MIN_LOG_LEVEL` says. They
come from C++ code, so that `sys.stderr` never sees them: file descriptor 2 is redirected to a
temporary file during the import, and the lines that are not log lines are then written to it.

`python -m kerasim._quiet script.py ...` runs a script in this way. `make demo` uses it.
"""

import contextlib
import logging
import os
import re
import runpy
import sys
import tempfile
from collections.abc import Iterator

# Log lines of absl, of TensorFlow, and the second line of one of them. Fatal errors ("F0000") stay.
_LOG_LINE = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog"
    rb"|[IWE]\d{4} \d\d:\d\d:\d+\.\d+ "
    rb"|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: [IWE] "
    rb"|To enable the following instructions:"
)


def import_keras() -> None:
    """Imports Keras and its backend, and keeps TensorFlow's log off the terminal from then on.

    What else is written to file descriptor 2 during the import, such as a warning of Python, is
    shown after it. If the import fails, everything is shown. `TF_CPP_MIN_LOG_LEVEL` is set to 3
    unless the environment sets it; `TF_ENABLE_ONEDNN_OPTS` is left alone, since it changes results.

    Raises:
        ImportError: If Keras or its backend cannot be imported.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with _hidden_log():
        import keras

        # On other backends Keras imports TensorFlow, if it can, once it serializes a model.
        keras.Sequential().to_json()
    # Messages of TensorFlow's Python code, such as its advice on retracing.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)


@contextlib.contextmanager
def _hidden_log() -> Iterator[None]:
    """Leaves log lines out of what is written to file descriptor 2 within the context."""
    try:
        terminal = os.dup(2)
    except OSError:  # the process has no file descriptor 2
        yield
        return
    with tempfile.TemporaryFile() as captured:
        sys.stderr.flush()
        os.dup2(captured.fileno(), 2)
        failed = True
        try:
            yield
            failed = False
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            captured.seek(0)
            kept = [line for line in captured if failed or not _LOG_LINE.match(line)]
            os.write(2, b"".join(kept))


def main() -> None:
    """Imports Keras quietly, then runs the script named by the first argument as `python` would."""
    if len(sys.argv) < 2:
        sys.exit("usage: python -m kerasim._quiet SCRIPT [ARGUMENT ...]")
    import_keras()
    del sys.argv[0]
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
