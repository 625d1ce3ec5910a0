"""Reading a written site as a browser would, for its tests: tags, links, texts, tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass
class Page:
    path: Path
    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    text: str = ""
    """Of everything but scripts."""
    data: str = ""
    """Of the JSON that the page carries."""
    rows: list[list[str]] = field(default_factory=list)
    """Texts of the cells of every table."""

    def links(self) -> Iterator[str]:
        for _, attributes in self.tags:
            yield from (attributes[name] for name in ("href", "src") if name in attributes)

    def ids(self) -> set[str]:
        return {attributes["id"] for _, attributes in self.tags if "id" in attributes}


class _Reader(HTMLParser):
    def __init__(self, page: Page) -> None:
        super().__init__()
        self.page = page
        self.script = False
        self.cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.page.tags.append((tag, {name: value or "" for name, value in attrs}))
        self.script = tag == "script"
        if tag == "tr":
            self.page.rows.append([])
        if tag in ("td", "th"):
            self.page.rows[-1].append("")
            self.cell = True

    def handle_endtag(self, tag: str) -> None:
        self.script = self.script and tag != "script"
        self.cell = self.cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.script:
            self.page.data += data
            return
        self.page.text += data
        if self.cell:
            self.page.rows[-1][-1] += data


def read_page(path: Path) -> Page:
    page = Page(path)
    reader = _Reader(page)
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    return page


def read_site(folder: Path) -> dict[str, Page]:
    """Every page by its path below the site."""
    return {path.relative_to(folder).as_posix(): read_page(path) for path in sorted(folder.rglob("*.html"))}


def broken_links(folder: Path, pages: dict[str, Page]) -> list[str]:
    """Links that lead nowhere, out of the site, or to a host."""
    places = {page.path.resolve(): page.ids() for page in pages.values()}
    return [
        f"{name}: {link}"
        for name, page in pages.items()
        for link in page.links()
        if link != "data:," and not _leads_somewhere(link, page.path.resolve(), folder.resolve(), places)
    ]


def _leads_somewhere(link: str, page: Path, folder: Path, places: dict[Path, set[str]]) -> bool:
    parts = urlsplit(link)
    if parts.scheme or parts.netloc or link.startswith("/"):
        return False
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    is_place = bool(parts.fragment) and "=" not in parts.fragment  # else it tells a script what to show
    return target.is_relative_to(folder) and target.is_file() and (not is_place or parts.fragment in places[target])
