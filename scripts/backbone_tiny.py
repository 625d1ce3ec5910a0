"""Does pre-training help? Fine-tunes the tiny backbone from pre-trained and from random weights, on few samples.

    python scripts/backbone_tiny.py runs/backbone-tiny --seeds 0,1,2

Writes OUT/results.csv and prints it as a table. Stopped, the same command goes on. Four minutes of one core a seed.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import subprocess
import sys
from pathlib import Path

from mmbench.backbone.checkpoint import load_meta

PLAIN = ("--set", "backbones=[{name: cavmae-tiny, fusion: none}]")
"""Pre-training has no fusion block: it would start shut from one kind of weights, and open from the other."""
UNLABELLED = ("--set", "datasets.0.seed=1")
LABELLED = ("--set", "datasets.0.samples=1000", "--set", "datasets.0.split={test: 0.8, val: 0.2}")
SHORT = ("--epochs", "1", "--set", "datasets.0.samples=300")
LONGER = ("--epochs", "60", "--option", "decay_start=30", "--option", "decay_step=5", "--option", "average_from=31")
STARTS = {"random": (), "random, five times the epochs": LONGER, "pre-trained": ()}


def backbone(verb: str, out: Path, seed: int, *options: str) -> None:
    words = ("backbone", verb, "synthetic-av", "--out", str(out), "--seed", str(seed), "--device", "cpu", *PLAIN)
    subprocess.run([sys.executable, "-m", "mmbench", *words, *options], check=True)


def accuracies(out: Path, seed: int, short: bool) -> dict[str, float]:
    """Test accuracy of complete pairs, by start."""
    fewer = SHORT if short else ()  # of two values the last counts
    backbone("pretrain", out / f"pretrained-{seed}", seed, *UNLABELLED, *fewer)
    found = {}
    for start, options in STARTS.items():
        init = ("--init", str(out / f"pretrained-{seed}")) if start == "pre-trained" else ()
        folder = out / f"{start}-start-{seed}".replace(", ", "-").replace(" ", "-")
        averaged = ("--option", "average_from=1") if short else ()
        backbone("finetune", folder, seed, *LABELLED, *init, *options, *fewer, *averaged)
        found[start] = float(load_meta(folder).meta["test_accuracy"])
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--short", action="store_true", help="one epoch on few samples each, to try the script")
    asked = parser.parse_args(arguments)
    seeds = [int(seed) for seed in asked.seeds.split(",")]
    rows = {seed: accuracies(asked.out, seed, asked.short) for seed in seeds}
    with (asked.out / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("seed", *STARTS))
        writer.writerows((seed, *(f"{row[start]:.4f}" for start in STARTS)) for seed, row in rows.items())
    print("| start | " + " | ".join(f"seed {seed}" for seed in seeds) + " | mean |")
    print("|---|" + "---:|" * (len(seeds) + 1))
    for start in STARTS:
        values = [100 * row[start] for row in rows.values()]
        cells = " | ".join(f"{value:.1f}" for value in values)
        print(f"| {start} | {cells} | {statistics.mean(values):.1f} |")


if __name__ == "__main__":
    main()
