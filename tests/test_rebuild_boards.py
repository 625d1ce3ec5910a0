"""scripts/rebuild_boards.py: a published board is what its records give, and what is not is named."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from report_records import field, save

from mmbench.records import find_records

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "rebuild_boards.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("rebuild_boards", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def board(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small board, published; without plots, which are not compared."""
    monkeypatch.setattr("mmbench.report.board.write_plots", lambda board, folder: ())
    results = save(tmp_path / "results", field(seeds=2)[:6])
    return Path(script.rebuild(results, tmp_path / "leaderboards" / "small"))


def test_a_board_as_its_records_give_it_passes(script: ModuleType, board: Path) -> None:
    assert script.boards(board.parent) == [board]
    assert script.main([str(board)]) == 0


def test_an_edited_an_added_and_a_missing_table_are_named(
    script: ModuleType, board: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edited, lost, *_ = sorted((board / "tables").glob("*.csv"))
    edited.write_text(edited.read_text() + "\n")
    lost.unlink()
    (board / "tables" / "old.md").write_text("| a |")
    assert script.main([str(board)]) == 1
    told = capsys.readouterr().out
    assert f"tables/{edited.name}: differs" in told
    assert f"tables/{lost.name}: not published" in told
    assert "tables/old.md: published, but its records no longer give it" in told
    assert "small: 3 files differ" in told


def test_a_record_edited_after_publication_shows(script: ModuleType, board: Path) -> None:
    path = next(find_records(board))
    path.write_text(path.read_text().replace('"accuracy"', '"accuracy2"'))
    assert script.main([str(board)]) == 1


def test_writing_makes_it_true_again(script: ModuleType, board: Path) -> None:
    (board / "tables" / "old.md").write_text("| a |")
    (board / "README.md").write_text("mine")
    assert script.main([str(board), "--write"]) == 0
    assert script.main([str(board)]) == 0
    assert not (board / "tables" / "old.md").exists()
