"""`backbone pretrain` and `backbone finetune` from the command line, alone and under torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from beds import distance, equal
from typer.testing import CliRunner, Result

from mmbench.backbone.checkpoint import load_backbone, load_meta, load_pretrained
from mmbench.backbone_training.course import EPOCHS
from mmbench.claims import claimed
from mmbench.cli import app
from mmbench.records import find_records, load_record
from mmbench.resume import PROGRESS

DATA = ("synthetic-av", "--set", "datasets.0.samples=60", "--device", "cpu")
SIZE = ("--batch-size", "8", "--epochs", "2")
WHOLE = ("--option", "average_from=1")
DUMP = """
import os, shutil, torch
from beds import memory_data
from pathlib import Path
from training_bed import SMALL, Course, ViewFeed, pretraining
from mmbench.backbone_training.joined import joined
from safetensors.torch import save_file
out = Path(os.environ["OUT"])
with joined(torch.device("cpu")) as (ranks, device):
    recipe = SMALL.model_copy(update={"contrast_weight": float(os.environ["CONTRAST"])})
    feed = ViewFeed(memory_data(train=22), recipe, ranks)
    def stopped(row):  # what a training that ends after the second epoch leaves
        if row.epoch == 2:
            shutil.copytree(out / "whole", out / "cut")
    for name, tell in (("whole", stopped), ("cut", lambda row: None)):
        objective = pretraining(recipe)
        Course(objective, feed, out / name, device, tell=tell).run()
        save_file(objective.net.state_dict(), out / f"{name}-{ranks.rank}.safetensors")
"""


def call(*words: str) -> Result:
    return CliRunner().invoke(app, ["backbone", *words])


def sound(*words: str) -> str:
    result = call(*words)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pretrained") / "folder"
    sound("pretrain", *DATA, *SIZE, "--out", str(out))
    return out


def test_a_pre_training_leaves_a_model_its_card_and_its_epochs(pretrained: Path) -> None:
    assert sorted(path.name for path in pretrained.iterdir()) == [EPOCHS, "pretrained.json", "pretrained.safetensors"]
    told = sound("info", str(pretrained))
    for words in ("pre-training: 1 x reconstruction + 0.01 x contrast", "data_digest: ", "epochs: 2", "seed: 0"):
        assert words in told
    losses = [json.loads(line)["losses"]["loss"] for line in (pretrained / EPOCHS).read_text().splitlines()]
    assert f"losses: {losses[0]:.4f} {losses[1]:.4f}" in told


def test_the_same_command_again_finds_it_finished_and_another_is_refused(pretrained: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in pretrained.iterdir()}
    assert sound("pretrain", *DATA, *SIZE, "--out", str(pretrained)).strip() == str(pretrained)
    for words in (("pretrain", *DATA, *SIZE, "--seed", "1"), ("finetune", *DATA, *SIZE, *WHOLE)):
        result = call(*words, "--out", str(pretrained))
        assert result.exit_code == 2
        assert "holds another backbone; choose another --out" in result.output
    assert {path: path.stat().st_mtime_ns for path in pretrained.iterdir()} == before


def test_what_a_kill_left_beside_a_finished_model_is_removed(pretrained: Path) -> None:
    (pretrained / PROGRESS).write_bytes(b"a kill came after the model and before the tidying up")
    epochs = (pretrained / EPOCHS).read_bytes()
    sound("pretrain", *DATA, *SIZE, "--out", str(pretrained))
    assert not (pretrained / PROGRESS).exists()
    assert (pretrained / EPOCHS).read_bytes() == epochs


@pytest.fixture(scope="module")
def tuned(pretrained: Path) -> Path:
    out = pretrained.parent / "tuned"
    frozen = ("--option", "freeze_base=true", "--lr", "0.00001", "--precision", "bf16")
    sound("finetune", *DATA, *SIZE, *WHOLE, *frozen, "--init", str(pretrained), "--out", str(out))
    return out


def test_a_fine_tuned_one_starts_from_the_pre_trained_one(pretrained: Path, tuned: Path) -> None:
    net, card = load_backbone(tuned)
    source, _ = load_pretrained(pretrained)
    kept = [name for name in source.state_dict() if name.startswith(("blocks_", "patch_", "norm"))]
    assert kept and all(net.state_dict()[name].equal(source.state_dict()[name]) for name in kept)
    assert card.meta["init"].startswith("pretrained.safetensors ")
    assert "lr=1e-05, " in card.meta["recipe"] and "precision=bf16" in card.meta["recipe"]


def test_a_pre_training_starts_from_another_one_but_from_nothing_else(
    pretrained: Path, tuned: Path, tmp_path: Path
) -> None:
    sound("pretrain", *DATA, *SIZE, "--lr", "1e-9", "--init", str(pretrained), "--out", str(tmp_path / "more"))
    before, after = (load_pretrained(folder)[0].state_dict() for folder in (pretrained, tmp_path / "more"))
    assert 0 < distance(before, after) < 1e-6
    result = call("pretrain", *DATA, *SIZE, "--init", str(tuned), "--out", str(tmp_path / "none"))
    assert result.exit_code == 2
    assert "is no pre-trained model of the size cavmae-tiny" in result.output


@pytest.mark.slow
def test_a_suite_scores_a_fine_tuned_one_as_its_card_does(tuned: Path, tmp_path: Path) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        "name: own\nmethods: [source]\ncases: [complete]\nseeds: [0]\n"
        f"datasets: [{{name: synthetic-av, samples: 60}}]\nbackbones: [{{name: own, path: {tuned}}}]\n"
    )
    result = CliRunner().invoke(app, ["run", str(suite), "--out", str(tmp_path / "run"), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    (found,) = find_records(tmp_path / "run")
    (accuracy,) = {score.value for score in load_record(found).scores if score.metric == "accuracy"}
    assert accuracy == pytest.approx(float(load_meta(tuned).meta["test_accuracy"]), abs=1e-4)


def test_a_suite_takes_a_pre_trained_folder_as_start(pretrained: Path, tmp_path: Path) -> None:
    backbone = f"backbones=[{{name: cavmae-tiny, init: {pretrained}, epochs: 1}}]"
    sound("build", "quickstart", "--set", "datasets=[{name: synthetic-av, samples: 60}]", "--set", backbone,
          "--out", str(tmp_path / "built"), "--device", "cpu")  # fmt: skip
    assert "trained_on: synthetic-av" in sound("info", str(tmp_path / "built"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--recipe", "audioset"), "no recipe 'audioset'"),
        (("--preset", "cavmae-huge"), "no backbone 'cavmae-huge'"),
        (("--batch-size", "5000"), "a batch of 5000 is more than the 30 training samples"),
        (("--set", "datasets=[synthetic-av, {name: synthetic-av, label: b}]"), "has 2 data sets; choose one"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    result = call("pretrain", *DATA, *words, "--out", str(tmp_path / "out"))
    assert result.exit_code == 2
    assert told in result.output
    assert len(result.output.splitlines()) == 1


def test_two_commands_do_not_train_in_one_folder(tmp_path: Path) -> None:
    with claimed(tmp_path) as mine:
        assert mine
        result = call("pretrain", *DATA, *SIZE, "--out", str(tmp_path))
    assert result.exit_code == 2
    assert "another process trains in" in result.output


@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_same_bits(pretrained: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "mmbench", "backbone", "pretrain", *DATA, *SIZE, "--out", str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline().startswith("epoch 1/2")
        running.kill()
    assert (tmp_path / PROGRESS).exists()
    assert "epoch 1/2" not in sound("pretrain", *DATA, *SIZE, "--out", str(tmp_path))
    one, other = (load_pretrained(folder)[1].sha256 for folder in (pretrained, tmp_path))
    assert one == other


def torchrun(out: Path, *words: str, **variables: str) -> None:
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, **variables, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OUT": str(out)}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words]
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("contrast", ["0", "0.01"])
def test_two_processes_end_with_equal_weights_stopped_or_not(tmp_path: Path, contrast: str) -> None:
    """Without contrast, which sees one process's share alone, they are those of one process with the whole batch."""
    from safetensors.torch import load_file
    from training_bed import SMALL, pretraining, trained

    (tmp_path / "dump.py").write_text(DUMP)
    torchrun(tmp_path, str(tmp_path / "dump.py"), CONTRAST=contrast)
    first, *others = (load_file(tmp_path / f"{name}-{rank}.safetensors") for name in ("whole", "cut") for rank in "01")
    assert all(equal(first, other) for other in others)
    recipe = SMALL.model_copy(update={"contrast_weight": float(contrast)})
    alone = trained(pretraining(recipe), tmp_path / "alone")
    rows = [json.loads(line)["losses"] for line in (tmp_path / "whole" / EPOCHS).read_text().splitlines()]
    gap = max(abs(row["audio"] - own.losses["audio"]) for row, own in zip(rows, alone.history, strict=True))
    assert (gap < 1e-4) == (contrast == "0")


@pytest.mark.slow
def test_the_verb_runs_under_torchrun(tmp_path: Path) -> None:
    words = ("-m", "mmbench", "backbone", "pretrain", *DATA, *SIZE, "--out", str(tmp_path / "out"))
    torchrun(tmp_path, *words)
    _, card = load_pretrained(tmp_path / "out")
    assert card.meta["processes"] == "2"
    assert not (tmp_path / "out" / PROGRESS).exists()
