"""What the page on costs claims is what its rows hold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from scipy.stats import spearmanr

from mmbench.profile_rows import ProfileRow

FOLDER = Path(__file__).resolve().parents[1] / "leaderboards" / "costs-base"
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")
GIB = 2**30


def rows(folder: Path) -> dict[str, ProfileRow]:
    found = [ProfileRow.model_validate_json(path.read_text(encoding="utf-8")) for path in folder.glob("rows/*.json")]
    return {row.setting.method: row for row in found if row.counts is not None}


def state_bytes(row: ProfileRow) -> int:
    assert row.counts is not None
    return row.counts.state.total_bytes


@pytest.mark.parametrize(
    ("label", "folder", "method"),
    [
        ("full fine-tuning, batch 128", ".", "full-finetune"),
        ("prompts at both levels, identical batch of 128", ".", "prompt-the-missing"),
        ("prompts at both levels, 38 samples: 30 % of the batch", "batch-38", "prompt-the-missing"),
        ("prompts at the attention level alone, identical batch of 128", ".", "prompt-attention"),
        ("prompts at the attention level alone, 38 samples", "batch-38", "prompt-attention"),
    ],
)
def test_the_claims_are_those_of_the_rows(label: str, folder: str, method: str) -> None:
    found = re.search(rf"^\| {re.escape(label)} \| ([\d.]+) \| (?:-([\d.]+) %)? ?\|$", PAGE, re.M)
    assert found is not None
    state, full = state_bytes(rows(FOLDER / folder)[method]), state_bytes(rows(FOLDER)["full-finetune"])
    assert found[1] == f"{state / GIB:.1f}"
    assert found[2] == (None if method == "full-finetune" else f"{100 * (1 - state / full):.1f}")


def test_the_correlation_is_that_of_the_rows() -> None:
    counted = list(rows(FOLDER).values())
    trainable = [row.counts.trainable_parameters for row in counted if row.counts is not None]
    said = re.search(r"Over the (\d+) methods that train, the rank correlation .*? is (\d+\.\d+)", PAGE, re.S)
    assert said is not None
    assert said[1] == str(len(counted))
    assert said[2] == f"{spearmanr(trainable, [state_bytes(row) for row in counted]).statistic:.2f}"
