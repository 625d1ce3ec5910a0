"""Suite files that come with the package."""

from __future__ import annotations

from pathlib import Path

from mmbench.errors import UnknownNameError

FOLDER = Path(__file__).resolve().parent


def shipped_suites() -> tuple[Path, ...]:
    return tuple(sorted(FOLDER.glob("*.yaml")))


def shipped_suite(name: str) -> Path:
    """The file of a shipped suite; raises UnknownNameError."""
    path = FOLDER / f"{name}.yaml"
    if path not in shipped_suites():
        raise UnknownNameError("suite", name, [suite.stem for suite in shipped_suites()])
    return path
