"""Print the README's table from a board: the required methods, the controls and the best rows of other families.

python scripts/readme_table.py leaderboards/methods-tiny
"""

from __future__ import annotations

import sys
from pathlib import Path

from mmbench.records import TrialRecord
from mmbench.report.aggregate import Board, accuracy_table, load_board
from mmbench.report.comparable import select
from mmbench.report.efficiency import efficiency_tables
from mmbench.report.model import Row, Table, cell_text

ALWAYS = ("source", "full-finetune", "lora-qv", "adapter-pfeiffer", "prompt-the-missing", "prompt-zero")
REGIMES = ("mixed", "–")  # noqa: RUF001  # what rows that do not train carry
OTHERS = 4
"""Rows of further families that are shown."""
ACCURACY = ("complete", "mean", "rank", "worst")
COSTS = ("trainable_parameters", "state_ratio")


def main(folder: Path) -> str:
    board = load_board(folder)
    (group,) = board.groups
    scores = accuracy_table(board, *group, "blind")
    costs = efficiency_tables(board, *group)[0]
    families = families_of(board, group)
    lines = [header(scores, costs), "|---|" + "---:|" * (len(ACCURACY) + len(COSTS))]
    lines += [line(row, scores, costs) for row in chosen(scores, families)]
    return "\n".join(lines)


def families_of(board: Board, group: tuple[str, str]) -> dict[str, str]:
    records: tuple[TrialRecord, ...] = select(board.records, *group).records
    return {record.trial.title: record.trial.family for record in records if not record.trial.strategies}


def chosen(scores: Table, families: dict[str, str]) -> list[Row]:
    """Rows under mixed training, best first; the best of some further families beside those that always stand."""
    seen: set[str] = set()
    kept: list[Row] = []
    for row in scores.rows:
        if row.regime not in REGIMES or row.name not in families or row.cells[scores.headline or 0].mean is None:
            continue
        others = sum(kept_row.name not in ALWAYS for kept_row in kept)
        if row.name in ALWAYS or (families[row.name] not in seen and others < OTHERS):
            kept.append(row)
        seen.add(families[row.name])
    return kept


def header(scores: Table, costs: Table) -> str:
    titles = [column.title for key in ACCURACY for column in scores.columns if column.key == key]
    titles += [column.title for key in COSTS for column in costs.columns if column.key == key]
    return f"| trained on all cases, told none | {' | '.join(titles)} |"


def line(row: Row, scores: Table, costs: Table) -> str:
    cost_row = next((r for r in costs.rows if (r.name, r.regime) == (row.name, row.regime)), None)
    cells = [_cell(row, scores, key) for key in ACCURACY]
    cells += [_cell(cost_row, costs, key) if cost_row else "" for key in COSTS]
    return f"| {row.name} | {' | '.join(cells)} |"


def _cell(row: Row, table: Table, key: str) -> str:
    index = next(i for i, column in enumerate(table.columns) if column.key == key)
    return cell_text(row.cells[index], table.columns[index])


if __name__ == "__main__":
    print(main(Path(sys.argv[1])))
