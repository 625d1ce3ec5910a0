"""All tables on one self-contained page: no script, no outside request."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from mmbench.report.model import Table, cell_text, plain

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --faint: #5c6570; --line: #d5dae0; --best: #0b5c2d; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --paper: #15181c; --faint: #9aa4af; --line: #363c44; --best: #7ee2a8; }
}
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper); }
body { max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2.5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
thead th { vertical-align: bottom; border-bottom: 2px solid var(--ink); white-space: normal; min-width: 4.5rem; }
th:first-child, td:nth-child(2), thead th:nth-child(2) { text-align: left; }
tbody th { font-weight: normal; }
thead .headline { text-decoration: underline; }
.best { font-weight: 700; color: var(--best); }
.word, .notes, .unit { color: var(--faint); }
.unit { font-weight: normal; }
.reported th, .reported td { font-style: italic; color: var(--faint); }
.notes { font-size: .85rem; padding-left: 1.1rem; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% for table in tables %}{% set marks = table.marks() %}
<h2 id="{{ table.slug }}">{{ plain(table.title) }}</h2>
<div class="scroll"><table>
<thead><tr><th scope="col">Method</th><th scope="col">{{ plain(table.setting.capitalize()) }}</th>
{% for column in table.columns %}<th scope="col"{% if column.headline %} class="headline"{% endif %}>
<bdi>{{ plain(column.label) }}</bdi>
{%- if column.unit %} <span class="unit">{{ column.unit }}</span>{% endif %}</th>
{% endfor %}</tr></thead>
<tbody>
{% for row in table.rows %}<tr{% if row.reported %} class="reported"{% endif %}>
<th scope="row"><bdi>{{ plain(row.name) }}</bdi>
{{- raised(row.notes, marks) }}</th><td><bdi>{{ plain(row.regime) }}</bdi></td>
{% for cell in row.cells %}<td{% if cell.best %} class="best"{% elif cell.mean is none %} class="word"{% endif %}>
{{- plain(cell_text(cell, table.columns[loop.index0])) }}{{ raised(cell.notes, marks) }}</td>
{% endfor %}</tr>
{% endfor %}</tbody>
</table></div>
<ul class="notes">
{% for text, mark in marks.items() %}<li><sup>{{ mark }}</sup> <bdi>{{ plain(text) }}</bdi></li>
{% endfor %}{% for note in table.notes %}<li><bdi>{{ plain(note) }}</bdi></li>
{% endfor %}</ul>
{% endfor %}
</body>
</html>
"""


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.globals.update(plain=plain, cell_text=cell_text, raised=_raised)
    return environment.from_string(_PAGE)


def _raised(notes: tuple[str, ...], marks: dict[str, str]) -> Markup:
    return Markup("<sup>{}</sup>").format(",".join(marks[note] for note in notes)) if notes else Markup("")


def as_html(title: str, tables: Sequence[Table]) -> str:
    """One page with every table; whatever a label holds is shown as text."""
    return _template().render(title=plain(title), tables=tables) + "\n"
