"""Suite files: strict, and every refusal names the file, the key and the value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmbench.config import Suite
from mmbench.errors import ConfigError, UnknownNameError
from mmbench.suite_file import load_suite, parse_suite
from mmbench.suites.shipped import shipped_suite
from mmbench.trials import Digests, make_trial, rows

PLAIN: dict[str, Any] = {"name": "s", "methods": ["source", "lora-qv"], "seeds": [0, 1]}


def write(folder: Path, text: str) -> Path:
    path = folder / "suite.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        rows(parse_suite({**PLAIN, **changes}))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"seed": 1}, r"seed: Extra inputs are not permitted \(got 1\)"),
        ({"budget": {"epoch": 1}}, r"budget\.epoch: Extra inputs"),
        ({"budget": {"optim": {"momentum": 0.9}}}, r"budget\.optim\.momentum: Extra inputs"),
        ({"budget": {"epochs": "many"}}, r"budget\.epochs: .*valid number.*'many'"),
        ({"budget": {"epochs": 0}}, r"budget\.epochs: .*greater than 0 \(got 0\)"),
        ({"budget": {"batch_size": -4}}, r"budget\.batch_size"),
        ({"budget": {"tuning_trials": 0}}, r"budget\.tuning_trials"),
        ({"budget": {"precision": "fp16"}}, r"budget\.precision: .*'fp32' or 'bf16'"),
        ({"methods": []}, r"methods: .*at least 1"),
        ({"methods": "lora-qv"}, r"methods"),
        ({"methods": [3]}, r"methods\.0"),
        ({"methods": ["lora-qv", "lora-qv"]}, r"methods named twice: lora-qv"),
        ({"seeds": []}, r"seeds"),
        ({"seeds": [0, 0]}, r"seeds named twice: 0"),
        ({"name": "../up"}, r"name: .*pattern"),
        ({"name": ""}, r"name"),
        ({"regimes": ["noisy"]}, r"regimes\.0: .*'clean', 'mixed', 'casewise' or 'missing-rate'"),
        ({"tracks": ["blinded"]}, r"tracks\.0"),
        ({"datasets": [{"name": "synthetic-av", "split": {"test": 1.5}}]}, r"datasets\.0\.split\.test"),
        ({"methods": ["lorra-qv"]}, r"no method 'lorra-qv'; did you mean: lora-qv"),
        ({"methods": [{"name": "lora-qv", "options": {"ranks": 4}}]}, r"no option of lora-qv 'ranks'.*rank"),
        ({"methods": [{"name": "lora-qv", "options": {"rank": "8"}}]}, r"rank of lora-qv must be int"),
        ({"cases": ["noise-to-audi"]}, r"did you mean: noise-to-audio"),
        ({"train_cases": ["nothing-like-it"]}, r"no case"),
        ({"datasets": ["synthetic"]}, r"no dataset 'synthetic'; did you mean: synthetic-av"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_key_and_value(changes: dict[str, Any], match: str) -> None:
    refused(changes, match)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match="methods: Field required"):
        parse_suite({"name": "s"})


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("name: s\nname: t\nmethods: [source]\n", r"suite\.yaml is not valid YAML.*key given twice: name"),
        ("name: s\nbudget: {epochs: 1, epochs: 2}\n", r"key given twice: epochs"),
        ("name: [s\n", r"suite\.yaml is not valid YAML"),
        ("- source\n", r"suite\.yaml must be a mapping of keys, not list"),
        ("", r"must be a mapping of keys, not NoneType"),
        ("name: !!python/object/apply:os.getcwd []\nmethods: [source]\n", r"not valid YAML"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        load_suite(write(tmp_path, text))


def test_a_file_that_is_not_there_or_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read suite .*none\.yaml: No such file"):
        load_suite(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ConfigError, match=r"binary\.yaml is not valid YAML"):
        load_suite(tmp_path / "binary.yaml")


def test_overrides_set_nested_keys_with_yaml_values(tmp_path: Path) -> None:
    path = write(tmp_path, "name: s\nmethods: [source]\n")
    suite = load_suite(path, ("budget.epochs=2", "budget.optim.name=sgd", "seeds=[4, 5]", "budget.samples=null"))
    assert (suite.budget.epochs, suite.budget.optim.name, suite.seeds) == (2.0, "sgd", (4, 5))
    assert suite.budget.samples is None


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("budget.epochs", r"--set takes key=value, got 'budget\.epochs'"),
        ("=3", r"--set takes key=value"),
        ("name.x=3", r"--set name\.x=3: the suite has no such place"),
        ("budget.epochs=[1", r"the value is not valid YAML"),
        ("budget.epoch=1", r"budget\.epoch: Extra inputs"),
    ],
)
def test_a_bad_override_is_refused(tmp_path: Path, override: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        load_suite(write(tmp_path, "name: s\nmethods: [source]\n"), (override,))


def test_short_and_long_forms_mean_the_same() -> None:
    short = parse_suite({"name": "s", "methods": ["lora-qv+mixed"], "datasets": ["synthetic-av"]})
    long = parse_suite(
        {"name": "s", "methods": [{"name": "lora-qv", "regimes": ["mixed"]}], "datasets": [{"name": "synthetic-av"}]}
    )
    assert short == long


def test_relative_paths_count_from_the_suite_file(tmp_path: Path) -> None:
    path = write(tmp_path, "name: s\nmethods: [source]\ndatasets: [{name: synthetic-av, root: data}]\n")
    assert load_suite(path).datasets[0].root == (tmp_path / "data").resolve()


def test_a_suite_cannot_be_changed_once_read() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse_suite(PLAIN).name = "other"


def test_rows_that_do_not_train_have_no_regime_and_one_seed() -> None:
    found = [(row.method.name, row.regime, row.seed) for row in rows(parse_suite(PLAIN))]
    trained = [("lora-qv", regime, seed) for regime in ("clean", "mixed") for seed in (0, 1)]
    assert found == [("source", None, 0), *trained]


def ids(suite: Suite, digests: Digests = Digests("d", "b"), place: str = "x") -> list[str]:  # noqa: B008 - frozen
    folders = {"backbone": Path(place), "store": Path(place)}
    return [make_trial(row, suite, digests, folders).id for row in rows(suite)]


def test_an_id_depends_on_content_and_not_on_places_or_titles() -> None:
    plain = parse_suite(PLAIN)
    assert ids(plain) == ids(plain, place="/elsewhere") == ids(parse_suite({**PLAIN, "name": "other", "title": "T"}))
    assert len(set(ids(plain))) == len(ids(plain))
    for other in (
        ids(plain, Digests("other", "b")),
        ids(plain, Digests("d", "other")),
        ids(parse_suite({**PLAIN, "cases": ["complete"]})),
    ):
        assert not set(other) & set(ids(plain))
    longer = ids(parse_suite({**PLAIN, "budget": {"epochs": 9}}))
    assert longer[0] == ids(plain)[0]  # the frozen model spends no budget
    assert not set(longer[1:]) & set(ids(plain))


def test_the_default_options_written_out_are_the_same_trial() -> None:
    written = parse_suite({**PLAIN, "methods": ["source", {"name": "lora-qv", "options": {"rank": 8}}]})
    assert ids(written) == ids(parse_suite(PLAIN))


def test_shipped_suites_are_valid() -> None:
    assert rows(load_suite(shipped_suite("quickstart")))
    with pytest.raises(UnknownNameError, match="did you mean: quickstart"):
        shipped_suite("quickstar")
