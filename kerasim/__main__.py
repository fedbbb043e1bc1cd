"""python -m kerasim: the command line."""

from kerasim.cli import main

if __name__ == "__main__":  # pragma: no branch - nothing imports this
    main()
