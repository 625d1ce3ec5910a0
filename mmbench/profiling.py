"""The costs of one method at one setting, counted and measured on made-up samples, without training it."""

from __future__ import annotations

import torch
from torch import Tensor

from mmbench import registry
from mmbench.audit import Audit, audit
from mmbench.backbone.cavmae import CAVMAEFT, count_parameters
from mmbench.backbone.config import preset
from mmbench.bench import Bench
from mmbench.config import Budget
from mmbench.costs import StepCounts, count_batch
from mmbench.errors import ConfigError
from mmbench.feed import seed_from
from mmbench.meter import Clock
from mmbench.method import Method, Recipe
from mmbench.profile_measure import LR, Measuring, free_memory, largest, random_batch
from mmbench.profile_rows import Counts, Measured, Plan, Setting
from mmbench.source import open_gates
from mmbench.steps import make_optimizer
from mmbench.strategy import Regimen

COUNTED = 2
"""Samples of the counting passes."""
CLASSES = 10


def profile(setting: Setting, plan: Plan, device: torch.device) -> tuple[Counts, Measured | None]:
    """Costs of one setting; the model is random, which costs as much as a trained one. Nothing is measured on meta.

    Raises ConfigError for a method that does not train.
    """
    if not registry.methods().card(setting.method).trains:
        raise ConfigError(f"{setting.method} does not train: there is no step to profile")
    free_memory()
    budget = Budget.model_validate(
        {"batch_size": setting.batch, "precision": setting.precision, "compile": setting.compile}
    )
    bench = Bench(device, budget, Clock(device))
    method = build_method(setting, device)
    method.net.compile_blocks(setting.compile)
    few = random_batch(method.net.config, COUNTED, torch.device("cpu")).to(device)
    steps = count_batch(Regimen(method), few, bench)
    if device.type == "meta":
        return _counts(method, steps, audit(Regimen(method), few, None, bench), plan, setting), None
    optimizer = make_optimizer(method.groups(LR), budget.optim)
    audited = audit(Regimen(method), few, optimizer.step, bench)
    del optimizer
    counts = _counts(method, steps, audited, plan, setting)
    kept, measured = Measuring(method, setting, plan, bench).measure(counts)
    state = counts.state.model_copy(update={"optimizer_bytes": kept})
    return counts.model_copy(update={"state": state}), measured


def build_method(setting: Setting, device: torch.device) -> Method:
    """The method on a random model; on meta without any values."""
    config = preset(setting.backbone, n_classes=CLASSES)
    if device.type == "meta":
        with device:
            net = CAVMAEFT(config)
    else:
        net = CAVMAEFT(config, torch.Generator().manual_seed(seed_from("profile")))
        open_gates(net)  # a closed gate would cut off what lies behind it
    build = registry.methods().load(setting.method)
    rng = torch.Generator().manual_seed(seed_from("build"))
    method: Method = build(net.to(device), Recipe(), setting.options, rng)
    method.begin(method.phases()[-1])  # where phases differ, the last one trains the most
    return method


def _counts(method: Method, steps: StepCounts, audited: Audit, plan: Plan, setting: Setting) -> Counts:
    declared = method.trainable()
    known = {id(parameter) for parameter in declared.values()}
    held = [parameter for group in method.groups(LR) for parameter in group["params"]]
    hidden = {id(t): t for t in (*audited.leaves, *held) if id(t) not in known}.values()
    reached = {name: p for name, p in declared.items() if name in steps.probe.trained}
    hidden_bytes = sum(tensor.nbytes for tensor in hidden)
    state = steps.state(setting.batch)
    state = state.model_copy(
        update={
            "parameters_bytes": state.parameters_bytes + hidden_bytes,
            "gradients_bytes": state.gradients_bytes + hidden_bytes,
            "optimizer_bytes": state.optimizer_bytes + 2 * hidden_bytes,
        }
    )
    per_batch = state.total_bytes - state.activations_bytes
    cap = plan.memory_cap_gib
    return Counts(
        trainable_parameters=_values(*reached.values(), *hidden),
        head_parameters=_values(*(p for name, p in reached.items() if name.startswith("mlp_head."))),
        hidden_parameters=_values(*hidden),
        total_parameters=count_parameters(method.net) + _values(*method.extra.parameters(), *hidden),
        stored_bytes=sum(tensor.nbytes for tensor in method.kept().values()),
        state=state,
        train_flops_per_sample=steps.probe.flops_per_sample,
        eval_flops_per_sample=steps.eval_flops_per_sample,
        kept_bytes_per_step=audited.kept_bytes_per_step,
        waits_per_step=audited.waits_per_step,
        largest_batch=None
        if cap is None
        else largest(lambda n: per_batch + steps.state(n).activations_bytes <= cap * 2**30),
    )


def _values(*tensors: Tensor) -> int:
    return sum(tensor.numel() for tensor in tensors)
