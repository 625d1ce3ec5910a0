"""scripts/gpu_costs.py: the paper's efficiency table beside measured rows."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from mmbench.profile_rows import Measured, ProfileRow, write_row
from mmbench.records import PeakMemory

ROOT = Path(__file__).resolve().parents[1]
COUNTED = ROOT / "leaderboards" / "costs-base"
GIB = 2**30


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_costs", ROOT / "scripts" / "gpu_costs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measured(counted: Path, peak_gib: float, epoch_seconds: float) -> ProfileRow:
    """A counted row as a GPU would have measured it."""
    peak = PeakMemory(allocated_bytes=int(peak_gib * GIB), reserved_bytes=None)
    figures = Measured(
        micro_batch=1,
        steps=1,
        train_memory=peak,
        eval_memory=peak,
        single_memory=peak,
        step_seconds_median=1.0,
        step_seconds_std=None,
        samples_per_second=1.0,
        epoch_samples=10_000,
        epoch_seconds=epoch_seconds,
        matmul_flops_per_second=1e12,
        achieved_share=0.5,
        energy_joules_per_step=None,
        eval_seconds_per_sample=1.0,
        single_seconds_median=1.0,
        single_seconds_std=None,
    )
    row = ProfileRow.model_validate_json(counted.read_text(encoding="utf-8"))
    return row.model_copy(update={"device": "cuda", "measured": figures})


def cells(text: str, method: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {method} |"))
    return [cell.strip() for cell in line.strip("| ").split("|")]


def test_the_paper_stands_beside_what_was_measured(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = COUNTED / "rows" / "full-finetune_cavmae-base_b128_fp32.json"
    prompts = COUNTED / "batch-38" / "rows" / "prompt-the-missing_cavmae-base_b38_fp32.json"
    write_row(measured(full, 60.0, 100.0), tmp_path / "whole" / "rows")
    write_row(measured(prompts, 12.0, 20.0), tmp_path / "part" / "rows")
    monkeypatch.setattr("sys.argv", ["gpu_costs.py", str(tmp_path / "whole"), str(tmp_path / "part")])
    script.main()
    text = capsys.readouterr().out
    assert cells(text, "full-finetune")[3:8] == ["60", "+0.0 %", "100", "+0.0 %", "50.0 %"]
    # 20 s are 10,000 samples by 38; as many steps as by 128 take 20 * 38 / 128 s.
    ours, paper = ["12", "-80.0 %", "5.938", "-94.1 %", "50.0 %"], ["17.85", "-81.2 %", "2.4", "-96.0 %"]
    assert cells(text, "prompt-the-missing")[1:] == ["fp32", "38", *ours, *paper]
