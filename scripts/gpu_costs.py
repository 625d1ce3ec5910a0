"""The paper's efficiency table beside rows of `mmbench profile`, at the identical batch and as the paper trained.

Prints Markdown. The paper's prompts see a part of each batch (`--part` samples of `--full`): an epoch of theirs has as
many steps as everybody's and fewer samples, and its seconds are told so here.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmbench.profile_rows import ProfileRow
from mmbench.report.published import published

REFERENCE = "full-finetune"
REPORTED = {REFERENCE: REFERENCE, "lora-qv": "lora", "adapter-houlsby": "adapter"}
"""What the paper calls a method, where it has another name."""
GIB = 2**30
HEAD = (
    "| method | precision | samples a step | peak (GiB) | vs full | epoch (s) | vs full | of matmul rate | paper: GiB "
    "| vs full | paper: epoch (s) | vs full |\n|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
)


def measured_rows(folders: Sequence[Path]) -> list[ProfileRow]:
    """Those that ran, each setting once."""
    texts = [path.read_text(encoding="utf-8") for folder in folders for path in sorted(folder.glob("rows/*.json"))]
    rows = {row.setting.file_name: row for row in map(ProfileRow.model_validate_json, texts) if not row.setting.compile}
    return [row for row in rows.values() if row.measured is not None]


def epoch_seconds(row: ProfileRow, full: int) -> float:
    """Of as many steps as whole batches of `full` samples make."""
    assert row.measured is not None
    return row.measured.epoch_seconds * row.setting.batch / full


def against(value: float | None, base: float | None) -> str:
    """Two cells: a value, and how far it is from the base."""
    return "not measured | " if value is None or not base else f"{value:.4g} | {100 * (value / base - 1):+.1f} %"


def lines(rows: Sequence[ProfileRow], full: int) -> Iterator[str]:
    """One a row; without full fine-tuning at the same precision there is nothing to compare it with."""
    bases = {r.setting.precision: r for r in rows if (r.setting.method, r.setting.batch) == (REFERENCE, full)}
    for row in rows:
        base, setting = bases.get(row.setting.precision), row.setting
        if base is None or row.measured is None or not (row.peak_bytes and base.peak_bytes):
            continue
        ours = (
            against(row.peak_bytes / GIB, base.peak_bytes / GIB),
            against(epoch_seconds(row, full), epoch_seconds(base, full)),
            f"{100 * row.measured.achieved_share:.1f} %",
        )
        facts = (setting.method, setting.precision, str(setting.batch))
        yield f"| {' | '.join((*facts, *ours, *reported(setting.method)))} |"


def reported(method: str) -> Iterator[str]:
    """What the paper says of a method's memory and epoch; empty cells for one that it does not have."""
    paper = {(f.method, f.metric): f.value for f in published() if f.case == "efficiency"}
    for metric in ("memory_gib", "epoch_seconds"):
        value = paper.get((REPORTED.get(method, method), metric))
        yield " | " if value is None else against(value, paper[REFERENCE, metric])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("profiles", nargs="+", type=Path, help="folders that `mmbench profile --out` wrote")
    parser.add_argument("--full", type=int, default=128)
    parser.add_argument("--part", type=int, default=38)
    asked = parser.parse_args()
    rows = [row for row in measured_rows(asked.profiles) if row.setting.batch in (asked.full, asked.part)]
    print("# The paper's costs beside the measured ones\n")
    print(f"{asked.full} samples a step: the identical budget. {asked.part}: what the paper's prompts see of a batch.")
    print("Epoch: the steps that 10,000 samples make in whole batches. The paper's data and machine are others.\n")
    print(HEAD)
    for line in lines(rows, asked.full):
        print(line)


if __name__ == "__main__":
    main()
