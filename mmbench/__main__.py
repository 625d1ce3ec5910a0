"""`python -m mmbench`, and the worker's entry when this file is run by its path."""

import sys
from pathlib import Path

if not __package__ and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path.pop(0)  # this folder, whose modules must not be importable as top-level names

from mmbench.cli import main

if __name__ == "__main__":
    main()
