"""Templates to files: one environment, in which every text is escaped and an unknown name is an error."""

from __future__ import annotations

import math
import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from mmbench.files import RecordError, make_folder
from mmbench.report.model import cell_text, plain

STATIC = ("site.css", "site.js")
_CODE = re.compile(r"`([^`]+)`")


@cache
def environment() -> Environment:
    """The templates of the package; pages are written without what autoescape did not see."""
    made = Environment(
        loader=PackageLoader("mmbench.report.site"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals.update(plain=plain, cell_text=cell_text)
    made.filters.update(bdi=bdi, code=code, number=number, megabytes=megabytes)
    return made


def bdi(text: str) -> Markup:
    """A label of a record on one line; its writing direction ends with it."""
    return Markup(f"<bdi>{escape(plain(text))}</bdi>")


def code(text: str) -> Markup:
    """Prose in which `names` stand between backticks."""
    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(text))))


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits, thousands grouped; a dash for what was not measured."""
    if value is None or not math.isfinite(value):
        return "\u2013"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(places, 12)}f}"


def megabytes(value: float | None) -> str:
    """Bytes as MiB."""
    return "\u2013" if value is None else f"{number(value / 2**20)} MiB"


class Pages:
    """Writes pages below one folder; `root` leads each of them back to it, so that the site works anywhere."""

    def __init__(self, folder: Path, **shared: Any) -> None:
        self._folder = folder
        self._shared = shared
        self.written = 0

    def write(self, path: str, template: str, **context: Any) -> None:
        """Render one page; raises RecordError if it cannot be written."""
        target = self._folder / path
        root = "../" * path.count("/")
        text = environment().get_template(template).render(root=root, path=path, **self._shared, **context)
        put(target, text.encode())
        self.written += 1

    def write_static(self) -> None:
        """Style sheet and script."""
        for name in STATIC:
            put(self._folder / "static" / name, (files("mmbench.report.site") / "static" / name).read_bytes())


def put(path: Path, content: bytes) -> None:
    """Write a file of a site that nobody reads yet: no flush to the disk, which thousands of pages would wait for."""
    make_folder(path.parent)
    try:
        path.write_bytes(content)
    except OSError as error:
        raise RecordError(f"cannot write {path}: {error.strerror}; free some space or choose another folder") from None
