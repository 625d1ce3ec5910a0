"""The static site: whole, inert whatever the records hold, and right."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from report_records import CASES, costs, data, failed, field, of, record, save
from site_pages import Page, broken_links, read_page, read_site

from mmbench import site_verb
from mmbench.errors import ConfigError
from mmbench.files import RecordError
from mmbench.records import TrialRecord
from mmbench.report.site.model import file_names
from mmbench.site_verb import build_site

HOSTILE = (
    "<script>alert(1)</script>",
    '" onmouseover="alert(2)',
    "</script><img src=x onerror=alert(3)>",
    "../../../outside",
    "/absolute",
    "\u202eright-to-left",
    "{{ 7 * 7 }}",
    "x" * 4000,
    "index",
    "con.",
    "line\nbreak\0null",
)


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Drawing takes seconds and has tests of its own."""
    if "slow" not in request.keywords:
        monkeypatch.setattr(site_verb, "write_plots", lambda board, folder: ())


def built(folder: Path, records: list[TrialRecord]) -> dict[str, Page]:
    """The pages of a site of these records, whose links are checked."""
    build_site(save(folder / "runs", records), folder / "site", samples=False)
    pages = read_site(folder / "site")
    assert broken_links(folder / "site", pages) == []
    return pages


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Page]:
    """A site of ten rows, one of which failed, and of a second data set with a refused one."""
    more = [
        record("lora-qv", trial_dataset="other", data=data(name="other", test=17)),
        failed("prompt-zero", "refused", "needs the case", trial_dataset="other"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(site_verb, "write_plots", lambda board, folder: ())
        return built(tmp_path_factory.mktemp("site"), [*field(2), *more])


def test_every_row_case_and_trial_has_a_page(pages: dict[str, Page]) -> None:
    folders = [name.partition("/")[0] for name in pages if "/" in name]
    assert {folder: folders.count(folder) for folder in folders} == {
        "methods": 9,
        "cases": len(CASES),
        "trials": 24,
        "tables": 2,
    }


def test_nothing_comes_from_another_host(pages: dict[str, Page]) -> None:
    site = pages["index.html"].path.parent
    for path in (*site.rglob("*.css"), *site.rglob("*.js")):
        assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttp|eval\(", path.read_text(encoding="utf-8")), path
    for page in pages.values():
        policies = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
        assert [policy.split(";")[0] for policy in policies] == ["default-src 'none'"]


def test_tables_show_what_was_measured(pages: dict[str, Page]) -> None:
    rows = pages["index.html"].rows
    shown = next(row for row in rows if row[0].strip().startswith("lora-qv") and row[1] == "mixed")
    # Two seeds: 96, 79, 82 and 64 percent, less 0.7 and as they are.
    assert [float(re.match(r"[\d.]+", cell.strip())[0]) for cell in shown[2:6]] == pytest.approx(  # type: ignore[index]
        [95.65, 78.65, 81.65, 63.65], abs=0.06
    )


def test_the_front_page_says_how_each_data_set_was_measured(pages: dict[str, Page]) -> None:
    text = pages["index.html"].text
    assert "700/100/300 train/val/test" in text and "700/100/17 train/val/test" in text


def test_what_did_not_finish_is_told_where_it_is_looked_for(pages: dict[str, Page]) -> None:
    method = pages["methods/adam-everything.html"].text
    assert "Trials that did not finish" in method and "one sample needs 9.1 GiB" in method
    assert any("does not fit" in cell for row in pages["index.html"].rows for cell in row)
    trial = next(page for name, page in pages.items() if name.startswith("trials/") and "refused" in page.text)
    assert "needs the case" in trial.text
    assert not any("Traceback ..." in page.text for page in pages.values())


def test_method_pages_define_and_cite(pages: dict[str, Page]) -> None:
    text = pages["methods/lora-qv.html"].text
    for words in ("Hu et al.", "4*d*rank*N", "@inproceedings{", "Accuracy on other", "Cost on synthetic-av"):
        assert words in text, words
    assert "No installed method" in pages["methods/adam-everything.html"].text


def test_case_pages_rank_the_methods(pages: dict[str, Page]) -> None:
    page = pages["cases/noise-to-both.html"]
    assert "seed/audio-both" in page.text and "seed/vision-both" in page.text
    tables: list[list[str]] = []
    for name, _, score in page.rows:
        tables.append([]) if name == "Method" else tables[-1].append(score)
    assert [len(scores) for scores in tables] == [2, 11, 11]
    for scores in tables[1:]:  # the first is of the other data set
        numbers = [float(score.split()[0]) for score in scores if score[0].isdigit()]
        assert numbers == sorted(numbers, reverse=True) and len(numbers) == 10
        assert scores[10] == "does not fit"


def test_the_comparison_carries_the_numbers_of_every_row(pages: dict[str, Page]) -> None:
    places = json.loads(pages["compare.html"].data)
    assert [place["title"] for place in places] == ["other, cavmae-tiny", "synthetic-av, cavmae-tiny"]
    place = places[1]
    index = next(str(i) for i, row in enumerate(place["rows"]) if row[:2] == ["full-finetune", "clean"])
    assert place["rows"][int(index)][2] == "methods/full-finetune.html"
    table = place["tables"][0]
    cells = dict(zip((column[0] for column in table["columns"]), table["rows"][index], strict=True))
    assert cells["complete"] == pytest.approx([97.65, 0.7 / 2**0.5], rel=1e-3)


def test_pages_of_a_kind_have_what_screen_readers_need(pages: dict[str, Page]) -> None:
    for name, page in pages.items():
        tags = [tag for tag, _ in page.tags]
        assert tags.count("h1") == 1 and tags.count("main") == 1, name
        assert tags.count("table") == tags.count("caption"), name
        heads = [attributes for tag, attributes in page.tags if tag == "th"]
        assert all(head.get("scope") in ("row", "col") for head in heads), name
        assert all("alt" in attributes for tag, attributes in page.tags if tag == "img"), name
        assert len(page.ids()) == sum("id" in attributes for _, attributes in page.tags), name
        assert ("a", {"class": "skip", "href": "#main"}) in page.tags, name


def test_labels_are_text_and_nothing_else(tmp_path: Path) -> None:
    hostile = [record(name, values=of(90 - i, 60, 70, 50), costs=costs(1000 + i)) for i, name in enumerate(HOSTILE)]
    hostile += [failed(HOSTILE[0], "crashed", HOSTILE[2], seed=1)]
    odd_cases = ("complete", *HOSTILE[:6])
    hostile += [
        record(
            "odd",
            trial_dataset=HOSTILE[2],
            trial_backbone=HOSTILE[3],
            trial_suite=HOSTILE[0],
            trial_cases=odd_cases,
            trial_options={HOSTILE[1]: HOSTILE[2]},
            trial_deviations=(HOSTILE[2],),
            values=dict.fromkeys(odd_cases, 0.5),
        )
    ]
    found = built(tmp_path, hostile)
    names = [path.relative_to(tmp_path / "site") for path in (tmp_path / "site").rglob("*")]
    assert all(re.fullmatch(r"[a-z0-9._-]{1,200}", part) for name in names for part in name.parts)
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "site"}
    for name, page in found.items():
        scripts = [a for tag, a in page.tags if tag == "script"]
        assert all(a.get("src", "").endswith("static/site.js") or a["type"] == "application/json" for a in scripts), (
            name
        )
        assert not [a for _, a in page.tags if any(key.startswith("on") or key == "style" for key in a)], name
        assert not [tag for tag, a in page.tags if tag == "img"], name
    assert HOSTILE[0] in found["index.html"].text
    titles = {row[0] for place in json.loads(found["compare.html"].data) for row in place["rows"]}
    assert {HOSTILE[0], HOSTILE[2], "line break null"} <= titles
    assert len([name for name in found if name.startswith("methods/")]) == len(HOSTILE) + 1


def test_a_name_made_to_look_like_another_gets_a_file_of_its_own() -> None:
    (first,) = file_names(["A"], "methods").values()
    forged = Path(first).stem
    assert forged != "A" and file_names([forged], "methods")[forged] == first
    assert len(set(file_names(["A", forged], "methods").values())) == 2


def test_one_site_replaces_another_and_leaves_the_files_of_others(tmp_path: Path) -> None:
    built(tmp_path, [record("old")])
    (tmp_path / "site" / "CNAME").write_text("kept", encoding="utf-8")
    (tmp_path / "runs" / "records").rename(tmp_path / "gone")
    found = built(tmp_path, [record("new")])
    assert "methods/new.html" in found and "methods/old.html" not in found
    assert (tmp_path / "site" / "CNAME").read_text(encoding="utf-8") == "kept"


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    runs = save(tmp_path / "runs", [record("a")])
    before = sorted(runs.rglob("*"))
    with pytest.raises(ConfigError, match="neither empty nor a site"):
        build_site(runs, runs, samples=False)
    assert sorted(runs.rglob("*")) == before
    with pytest.raises(RecordError, match="no record"):
        build_site(tmp_path / "nothing", tmp_path / "site", samples=False)
    assert not (tmp_path / "site").exists()


@pytest.mark.slow
def test_plots_samples_and_sounds(tmp_path: Path) -> None:
    import soundfile
    from PIL import Image

    cases = (
        {"name": "complete"},
        {"name": "hiss@5", "audio": "read/gaussian_noise@5"},
        {"name": "unknown", "vision": "nowhere/x@1"},
    )
    names = tuple(str(case["name"]) for case in cases)
    rows = [
        record(title, trial_cases=names, trial_contents={"cases": list(cases)}, values=dict.fromkeys(names, score))
        for title, score in (("lora-qv", 0.6), ("bitfit", 0.5))
    ]
    build_site(save(tmp_path / "runs", rows), tmp_path / "site")
    found = read_site(tmp_path / "site")
    assert broken_links(tmp_path / "site", found) == []
    pictures = [a for tag, a in found["index.html"].tags if tag == "img"]
    assert pictures and all(len(a["alt"]) > 20 for a in pictures)
    page = next(page for name, page in found.items() if name.startswith("cases/hiss"))
    sheet = next(a for tag, a in page.tags if tag == "img")
    with Image.open(page.path.parent / sheet["src"]) as picture:
        assert picture.size == (int(sheet["width"]), int(sheet["height"]))
    sounds = [soundfile.read(page.path.parent / a["src"]) for tag, a in page.tags if tag == "audio"]
    (clean, rate), (noisy, _) = sounds
    assert rate == 16_000 and len(clean) == len(noisy) <= 2 * rate
    assert ((noisy - clean) ** 2).mean() > (clean**2).mean() / 20  # 10 dB and less of signal to noise at severity 5
    assert "How it looks" not in read_page(tmp_path / "site" / "cases" / "unknown.html").text


@pytest.mark.slow
def test_many_trials_are_drawn_by_a_second_process_and_look_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = save(tmp_path / "runs", field(2))
    build_site(runs, tmp_path / "alone", samples=False)
    monkeypatch.setattr(site_verb, "MANY", 0)
    build_site(runs, tmp_path / "both", samples=False)
    alone, both = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "alone", tmp_path / "both")
    )
    assert any(path.suffix == ".png" for path in alone)
    assert both == alone
