"""What `backbone build`, `backbone import` and `backbone info` do."""

from __future__ import annotations

from pathlib import Path

import torch

from mmbench.backbone.cavmae import CAVMAEFT, count_parameters
from mmbench.backbone.checkpoint import (
    PRETRAINED_DESCRIPTION,
    load_backbone,
    load_official,
    load_pretrained,
    read_state,
    save_backbone,
)
from mmbench.backbone.config import preset
from mmbench.bench import Bench, pick_device
from mmbench.config import Budget
from mmbench.errors import CheckpointError, ConfigError
from mmbench.meter import Clock
from mmbench.prepare import prepare_data
from mmbench.runner import make_listener, read_suite
from mmbench.source import build_source, prepare_backbone
from mmbench.sweep import reading

HEAD = "mlp_head.1.weight"


def build_command(
    suite_path: Path, out: Path | None, overrides: tuple[str, ...], device_name: str | None, quiet: bool
) -> None:
    """Build the source model of every data set of a suite; into `out` if there is just one."""
    suite = read_suite(suite_path, overrides)
    device = pick_device(device_name)
    pairs = [(dataset, spec) for dataset in suite.datasets for spec in suite.backbones]
    if out is not None and len(pairs) > 1:
        raise ConfigError(f"--out takes one model, suite {suite.name} has {len(pairs)}; leave it away to use the cache")
    for dataset, spec in pairs:
        with make_listener(quiet, False) as listen:
            data = prepare_data(dataset, spec, reading(listen, dataset.title))

        def tell(title: str = spec.name, **row: object) -> None:
            if not quiet and row.get("event") == "epoch":
                print(f"{title}: {row['samples']} of {row['of']} samples, loss {row['loss']:.4f}", flush=True)

        bench = Bench(device, Budget(), Clock(device), tell)
        if out is not None:
            build_source(spec, data, out, device, bench)
            print(out)
        else:
            print(prepare_backbone(spec, dataset, data, device, bench).folder)


def import_command(checkpoint: Path, out: Path, classes: int | None, size: str) -> None:
    """Write a backbone folder from an official fine-tuned checkpoint.

    Raises CheckpointError for a file that does not fit; a pre-training checkpoint has no head and is refused.
    """
    state = read_state(checkpoint)
    if HEAD not in state:
        raise CheckpointError(
            f"{checkpoint} has no classification head (a pre-training checkpoint); name it as `init:` of the suite's "
            "backbone, and `mmbench backbone build` fine-tunes it"
        )
    found = state[HEAD].shape[0]
    if classes is not None and classes != found:
        raise CheckpointError(f"{checkpoint} has a head of {found} classes, not {classes}")
    net = CAVMAEFT(preset(size, n_classes=found), torch.Generator().manual_seed(0))
    report = load_official(net, checkpoint)
    save_backbone(net, out, {"imported_from": checkpoint.name, "kind": report.kind})
    print(f"{out}: {count_parameters(net):,} parameters, {found} classes")
    if report.missing:
        shown = ", ".join(report.missing[:4])
        print(f"  not in the checkpoint, left at their start: {shown} ({len(report.missing)} in all)")
        print("  the fusion gates start closed, so attention-level prompts need a fine-tuning first: backbone build")


def info_command(path: Path) -> None:
    """Describe a backbone folder or a checkpoint file."""
    if path.is_dir():
        pretrained = (path / PRETRAINED_DESCRIPTION).is_file()
        net, meta = load_pretrained(path) if pretrained else load_backbone(path)
        facts: dict[str, object] = {**meta.config.to_dict(), **meta.meta, "sha256": meta.sha256}
        facts["parameters"] = f"{count_parameters(net):,}"
    else:
        state = read_state(path)
        kind = "fine-tuned" if HEAD in state else "pre-trained" if "mask_token" in state else "unknown"
        facts = {"tensors": len(state), "parameters": f"{sum(t.numel() for t in state.values()):,}", "kind": kind}
        if HEAD in state:
            facts["classes"] = state[HEAD].shape[0]
    for key, value in facts.items():
        print(f"{key}: {value}")
