"""python -m kerasim: the command line."""

from kerasim.cli import main

if __name__ == "__main__":
    main()
