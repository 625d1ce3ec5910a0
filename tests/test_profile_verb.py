"""`mmbench profile`: every combination is a row, whatever becomes of it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import mmbench.profile_grid as profile_grid
from mmbench.cli import app
from mmbench.errors import ConfigError, UnknownNameError
from mmbench.profile_grid import Grid, Output, run_grid, settings
from mmbench.profile_rows import Plan, ProfileRow, Setting
from mmbench.report.model import NOT_MEASURED
from mmbench.report.profile import as_profile_csv, profile_table
from mmbench.report.profile_plots import memory_against_parameters, pareto
from mmbench.report.text import as_text

HEAD = Setting(method="linear-probe")


def test_settings_are_the_product_of_all_that_was_asked_for() -> None:
    grid = Grid(["lora-qv,linear-probe"], "cavmae-tiny,cavmae-base", "2,4", "fp32,bf16", ["rank=2,4,8"])
    rows = settings(grid)
    assert len(rows) == len({row.file_name for row in rows}) == 2 * 2 * 2 * (3 + 1)  # the probe has no rank
    assert {row.options.get("rank") for row in rows} == {2, 4, 8, None}


@pytest.mark.parametrize(
    ("grid", "told"),
    [
        (Grid(["lora-qw"]), "lora-qv"),
        (Grid(["lora-qv"], "cavmae-huge"), "cavmae-huge"),
        (Grid(["lora-qv"], batches="none"), "batch 'none'"),
        (Grid(["lora-qv"], precisions="fp8"), "fp8"),
        (Grid([","]), "no method"),
        (Grid(["lora-qv"], batches=","), "no batch"),
        (Grid(["lora-qv"], options=["rnak=2"]), "rank"),
        (Grid(["lora-qv"], options=["rank=two"]), "rank of lora-qv"),
        (Grid(["lora-qv"], options=["rank"]), "name=value"),
    ],
)
def test_what_no_row_could_have_is_an_error_at_once(grid: Grid, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        settings(grid)


def test_rows_of_equal_memory_have_no_correlation_to_tell(recwarn: pytest.WarningsRecorder) -> None:
    counts = run_grid((HEAD,), Plan(), "meta", Output())[0]
    figure = memory_against_parameters([counts] * 3)
    assert figure is not None and "correlation" not in figure.axes[0].get_title()
    assert not [warning for warning in recwarn if "constant" in str(warning.message)]


def test_a_row_that_fails_stands_with_its_reason_beside_the_others(tmp_path: Path) -> None:
    rows = run_grid((Setting(method="source"), HEAD), Plan(), "meta", Output(tmp_path))
    assert [row.status for row in rows] == ["refused", "ok"]
    written = {path.stem: ProfileRow.model_validate_json(path.read_text()) for path in tmp_path.glob("rows/*.json")}
    assert list(written.values()).count(rows[0]) == 1 and set(written) == {row.setting.file_name for row in rows}
    lines = list(csv.DictReader((tmp_path / "profile.csv").open()))
    assert lines[0]["status"] == "refused" and "source does not train" in lines[0]["reason"]
    assert lines[1]["trainable (M)"] and not lines[1]["reason"]
    assert "source does not train" in (tmp_path / "profile.md").read_text()
    assert (tmp_path / "profile_memory.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("error", "status"), [(torch.OutOfMemoryError("no room"), "does-not-fit"), (ValueError("odd"), "crashed")]
)
def test_every_error_of_a_row_is_its_status(error: Exception, status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(profile_grid, "profile", fail)
    (row,) = run_grid((HEAD,), Plan(), "meta", Output())
    assert row.status == status and row.failure is not None and str(error) in row.failure.message


def test_an_interruption_keeps_the_finished_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = profile_grid.profile

    def stop_at_the_second(setting: Setting, *rest: object) -> object:
        if setting.batch == 2:
            raise KeyboardInterrupt
        return whole(setting, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(profile_grid, "profile", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        run_grid((HEAD, HEAD.model_copy(update={"batch": 2})), Plan(), "meta", Output(tmp_path))
    assert len(list(tmp_path.glob("rows/*.json"))) == 1
    assert (tmp_path / "profile.csv").read_text().count("linear-probe") == 1


def test_what_was_not_measured_is_a_dash_and_the_table_fits_a_terminal() -> None:
    rows = run_grid((HEAD, Setting(method="source")), Plan(), "meta", Output())
    text = as_text(profile_table(rows))
    assert NOT_MEASURED in text and max(map(len, text.splitlines())) <= 80
    assert "ms" not in as_profile_csv(rows[:1]).splitlines()[0].replace("step_std (ms)", "")


def test_the_csv_tells_compiled_rows_from_others() -> None:
    (row,) = run_grid((HEAD,), Plan(), "meta", Output())
    compiled = row.model_copy(update={"setting": HEAD.model_copy(update={"compile": True})})
    options = [line["options"] for line in csv.DictReader(as_profile_csv((row, compiled)).splitlines())]
    assert options == ["", "compile=True"]


def test_json_is_a_line_a_row_and_traces_are_written(tmp_path: Path) -> None:
    command = ["profile", "linear-probe", "--batch", "2,3", "--steps", "1", "--json", "--device", "cpu"]
    result = CliRunner().invoke(app, [*command, "--trace", str(tmp_path / "traces")])
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["setting"]["batch"] for row in rows] == [2, 3]
    assert rows[0]["measured"]["epoch_samples"] == 10_000 and rows[0]["measured"]["largest_batch"] is None
    for row in rows:
        trace = tmp_path / "traces" / f"linear-probe_cavmae-tiny_b{row['setting']['batch']}_fp32.trace.json"
        assert json.loads(trace.read_text())["traceEvents"]


def test_a_trace_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="meta"):
        run_grid((HEAD,), Plan(trace=Path("traces")), "meta", Output())


def test_an_unknown_option_names_those_there_are() -> None:
    with pytest.raises(UnknownNameError, match="rank"):
        settings(Grid(["lora-qv"], options=["ranks=2"]))


def test_the_front_holds_what_no_point_beats() -> None:
    assert pareto([(1, 5), (2, 5), (2, 3), (3, 4), (4, 1), (4, 2)]) == [(1, 5), (2, 3), (4, 1)]
