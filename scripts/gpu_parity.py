"""Logits of cavmae-base on the CPU and on the GPU, in single precision with TF32 off: prints the largest difference."""

from __future__ import annotations

import argparse
import json
import sys

import torch

from mmbench.backbone.cavmae import CAVMAEFT, MODES
from mmbench.backbone.config import preset
from mmbench.profiling import random_batch

TOLERANCE = 1e-4
"""Largest difference, as a share of the largest logit; sums of another order differ by about 1e-6."""


def differences(samples: int) -> dict[str, float]:
    """By forward mode: the largest difference over the largest logit."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    config = preset("cavmae-base", n_classes=10)
    net = CAVMAEFT(config, torch.Generator().manual_seed(0)).eval()
    batch = random_batch(config, samples, torch.device("cpu"))
    found = {}
    with torch.no_grad():
        expected = {mode: net(batch.audio, batch.image, mode=mode) for mode in MODES}
        net = net.to("cuda")
        audio, image = batch.audio.to("cuda"), batch.image.to("cuda")
        for mode, logits in expected.items():
            got = net(audio, image, mode=mode).cpu()
            found[mode] = float((got - logits).abs().max() / logits.abs().max())
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=4)
    samples = parser.parse_args().samples
    if not torch.cuda.is_available():
        print("error: torch sees no CUDA device", file=sys.stderr)
        return 2
    found = differences(samples)
    print(json.dumps({"device": torch.cuda.get_device_name(), "tolerance": TOLERANCE, "difference": found}, indent=1))
    return 0 if max(found.values()) <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
