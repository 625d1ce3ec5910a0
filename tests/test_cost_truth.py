"""What a trial's record says of training: all that any case trains, and nothing of what its predictions cost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from beds import COMPLETE, NO_AUDIO, HeadOnly, build, make, make_bench, make_job, memory_data
from torch import nn

from mmbench import run
from mmbench.backbone.checkpoint import save_backbone
from mmbench.config import OptimConfig
from mmbench.conformance_bed import Bed
from mmbench.costs import count_step, fit_micro_batch
from mmbench.data.batch import Batch
from mmbench.records import RECORD, Costs, load_record
from mmbench.strategy import Regimen
from mmbench.suite_file import parse_suite
from mmbench.train import fit
from mmbench.trials import Digests, make_trial, rows

SLEEP_SECONDS, BLOCK_MIB = 0.2, 96
TWINS = f"""
import time
import torch
from mmbench.method import Method
from mmbench.registry import method

FACTS = {{"family": "f", "reference": "r", "year": 2026, "memory": "M0"}}


@method("light", title="L", **FACTS)
class Light(Method):
    def build(self, rng):
        pass


@method("heavy-in-evaluation", title="H", **FACTS)
class Heavy(Light):
    def predict(self, batch):
        time.sleep({SLEEP_SECONDS})
        torch.ones({BLOCK_MIB} * 2**18)
        return super().predict(batch)
"""
SUITE = {"name": "s", "cases": ["complete"], "seeds": [0], "regimes": ["clean"]}
BUDGET = {"epochs": 4, "batch_size": 8, "eval_batch": 2, "tuning_trials": 2}


def costs_of(name: str, folder: Path) -> Costs:
    save_backbone(Bed().net(), folder / "backbone", {})
    suite = parse_suite({**SUITE, "methods": [name], "budget": BUDGET})
    places = {"backbone": folder / "backbone", "store": folder}
    (folder / "trial").mkdir()
    trial = make_trial(rows(suite)[0], suite, Digests("data", "backbone"), places)
    (folder / "trial" / "spec.json").write_text(trial.model_dump_json())
    assert run.run_trial(folder / "trial", torch.device("cpu")) == "ok"
    costs = load_record(folder / "trial" / RECORD).costs
    assert costs is not None
    return costs


def test_what_predictions_cost_is_not_the_trainings(
    use_plugin: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "reopen_data", lambda *_: memory_data())
    use_plugin(TWINS)
    light, heavy = (costs_of(name, tmp_path_factory.mktemp(name)) for name in ("light", "heavy-in-evaluation"))
    slept = 5 * SLEEP_SECONDS  # ten samples, two at a time
    assert heavy.seconds.evaluate > slept > light.seconds.evaluate
    assert heavy.seconds.tune > 2 * 4 * SLEEP_SECONDS  # eight samples of validation, twice
    assert heavy.epoch_seconds is not None and heavy.epoch_seconds < slept / 2
    assert heavy.seconds.train < slept
    assert heavy.training_state == light.training_state
    for costs in (light, heavy):
        parts = costs.seconds.model_dump()
        assert parts.pop("wall") == pytest.approx(sum(parts.values()), rel=0.02)
    train, evaluate = heavy.train_memory.rss_bytes, heavy.eval_memory.rss_bytes
    light_train = light.train_memory.rss_bytes
    if train is None or evaluate is None or light_train is None:
        pytest.skip("this platform tells no resident size")
    block_bytes = BLOCK_MIB * 2**20
    assert evaluate - train > block_bytes / 2 > train - light_train


def test_what_only_one_case_reaches_is_counted() -> None:
    class PerCase(HeadOnly):
        def build(self, rng: torch.Generator) -> None:
            super().build(rng)
            for name in ("complete", "missing-audio", "unused"):
                self.extra[name] = nn.Linear(1, 10, bias=False)

        def logits(self, batch: Batch) -> torch.Tensor:
            assert batch.case is not None
            shifts = [self.extra[name].weight[:, 0] for name in batch.case]
            return super().logits(batch) + torch.stack(shifts)[:, : self.net.config.n_classes]

    method, bench = make(PerCase), make_bench()
    head = sum(parameter.numel() for parameter in method.net.mlp_head.parameters())
    for cases, reached in (((COMPLETE,), 1), ((COMPLETE, NO_AUDIO), 2)):
        counts = count_step(Regimen(method), memory_data(), cases, bench)
        values = head + 10 * reached
        assert sum(method.trainable()[name].numel() for name in counts.probe.trained) == values
        assert (counts.state(8).gradients_bytes, counts.state(8).optimizer_bytes) == (4 * values, 8 * values)


@pytest.mark.parametrize(("momentum", "kept"), [(0.9, 1), (0.0, 0)])
def test_a_cap_counts_the_state_of_the_optimiser_that_runs(momentum: float, kept: int) -> None:
    method, data = build("full-finetune"), memory_data()
    counts = count_step(Regimen(method), data, (COMPLETE,), make_bench())
    need_bytes = counts.state(8).total_bytes - (2 - kept) * counts.state(8).gradients_bytes
    optim = OptimConfig(name="sgd", betas=(momentum, 0.0))
    for cap_bytes, fits in ((need_bytes, 8), (need_bytes - 1, 4)):
        bench = make_bench(memory_cap_gib=cap_bytes / 2**30, optim=optim)
        assert fit_micro_batch(counts, bench) == fits
    ran = fit(method, data, make_job(), make_bench(optim=optim)).ledger
    assert ran.optimizer_bytes == kept * counts.state(8).gradients_bytes
