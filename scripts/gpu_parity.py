"""The same on the CPU and on the GPU, in single precision with TF32 off: logits, and every corruption of a few samples.

Prints JSON and ends with 1 where a difference exceeds its tolerance or a digest differs. With --device cpu everything
is compared with itself, which only shows that the script runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace

import torch

from mmbench import registry
from mmbench.backbone.cavmae import CAVMAEFT, MODES
from mmbench.backbone.config import preset
from mmbench.cases import Case, parse_case
from mmbench.config import BackboneSpec, DataConfig
from mmbench.data.batch import Batch
from mmbench.feed import EvalFeed, TrialData
from mmbench.pipeline import SetDigest
from mmbench.prepare import prepare_data
from mmbench.profiling import random_batch

TOLERANCE = 1e-4
"""Largest difference, as a share of the largest logit; sums of another order differ by about 1e-6."""
FEATURE_TOLERANCE = 1e-3
"""The same for logits of samples whose features were made on either device: a log magnifies the last bits of what is
nearly silent."""
MISSING = ("missing-audio", "missing-vision")


def source(backbone: str, device: str) -> CAVMAEFT:
    net = CAVMAEFT(preset(backbone, n_classes=10), torch.Generator().manual_seed(0))
    return net.eval().to(device)


def logit_differences(backbone: str, samples: int, device: str) -> dict[str, float]:
    """By forward mode: the largest difference over the largest logit."""
    here, there = source(backbone, "cpu"), source(backbone, device)
    batch = random_batch(here.config, samples, torch.device("cpu"))
    audio, image = batch.audio.to(device), batch.image.to(device)
    return {mode: share(there(audio, image, mode=mode), here(batch.audio, batch.image, mode=mode)) for mode in MODES}


def share(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.cpu() - expected).abs().max() / expected.abs().max())


def corruption_cases() -> Iterator[Case]:
    """Every corruption alone at its worst, and both kinds of absence."""
    known = registry.corruptions()
    for name in known.names():
        card = known.card(name)
        if card.stage != "missing":
            worst = max(card.severities)
            text = f"{name}@{worst}" if worst else name
            yield Case(name, audio=text) if card.modality == "audio" else Case(name, vision=text)
    yield from map(parse_case, MISSING)


def corruption_differences(backbone: str, samples: int, device: str) -> dict[str, dict[str, object]]:
    """By corruption: whether the digests agree, and how far features and logits differ."""
    data = prepare_data(DataConfig(name="synthetic-av", samples=40), BackboneSpec(name=backbone))
    data = replace(data, splits=replace(data.splits, test=data.splits.test[:samples]))
    nets = source(backbone, "cpu"), source(backbone, device)
    cases = [case for case in corruption_cases() if data.unmet(case) is None]
    return {case.name: compared(data, case, nets, device) for case in cases}


def compared(data: TrialData, case: Case, nets: tuple[CAVMAEFT, CAVMAEFT], device: str) -> dict[str, object]:
    (here, digest), (there, digest_there) = made(data, case, "cpu"), made(data, case, device)
    logits = [net(batch.audio, batch.image) for net, batch in zip(nets, (here, there), strict=True)]
    return {
        "digest": digest == digest_there,
        "audio": float((there.audio.cpu() - here.audio).abs().max()),
        "image": float((there.image.cpu() - here.image).abs().max()),
        "logits": share(logits[1], logits[0]),
    }


def made(data: TrialData, case: Case, device: str) -> tuple[Batch, str]:
    digest = SetDigest()
    (staged,) = EvalFeed(data, "test", case, len(data.splits.test)).staged(digest)
    return staged.to(device), digest.hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="cavmae-base")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--device", default="cuda")
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        print("error: torch sees no CUDA device", file=sys.stderr)
        return 2
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    with torch.no_grad():
        found = logit_differences(asked.backbone, asked.samples, asked.device)
        corruptions = corruption_differences(asked.backbone, asked.samples, asked.device)
    name = torch.cuda.get_device_name() if asked.device == "cuda" else asked.device
    tolerances = {"logits": TOLERANCE, "corruptions": FEATURE_TOLERANCE}
    print(json.dumps({"device": name, "tolerance": tolerances, "logits": found, "corruptions": corruptions}, indent=1))
    same = all(row["digest"] for row in corruptions.values())
    near = all(float(str(row["logits"])) <= FEATURE_TOLERANCE for row in corruptions.values())
    return 0 if same and near and max(found.values()) <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
