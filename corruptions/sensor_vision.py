"""Failing cameras and links: sensor/* of pictures and films."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from corruptions.sensor_audio import gilbert
from mmbench.registry import corruption
from mmbench.rng import Draws

FROZEN_TENTHS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5}  # of the film, for which the picture has stood still
DEAD_CHANNELS = {1: (1, 0.5), 2: (1, 0.25), 3: (1, 0.0), 4: (2, 0.25), 5: (2, 0.0)}  # how many, what is left of them
DEAD_SHARE = {1: 0.01, 2: 0.05, 3: 0.1, 4: 0.2, 5: 0.4}
OCCLUDED_SHARE = {1: 0.05, 2: 0.1, 3: 0.2, 4: 0.35, 5: 0.5}
BLOCK = 16  # pixels
BLACK, WHITE, STUCK = range(3)  # what a dead pixel shows

SHARED = {
    "family": "sensor",
    "modality": "vision",
    "stage": "image",
    "variant": "sensor-1",
}


@corruption(
    "sensor/frozen_frame",
    family="sensor",
    modality="vision",
    stage="sample",
    variant="sensor-1",
    deterministic=True,
    requires="moving-pictures",
    reference="the picture of .1 .2 .3 .4 .5 of the film ago: 1 2 3 4 5 of ten pictures",
    note="never before the first picture; of less than ten pictures several severities may show the same one",
)
def frozen_frame(number: Tensor, draws: Draws, severity: int) -> Tensor:
    """The camera has stopped: an earlier picture is still shown."""
    back = -(-FROZEN_TENTHS[severity] * draws.lengths // 10)  # (B,), rounded up, so that any film shows an earlier one
    return (number - back).clamp(min=0)


@corruption(
    "sensor/frame_loss",
    **SHARED,
    reference="16-pixel blocks lost in reading order by Gilbert's channel, loss .02 .05 .1 .2 .4 in bursts of "
    "1.5 2 3 4 6",
    note="a lost block shows the block above it, as concealed itself; with nothing received above, black",
)
def frame_loss(x: Tensor, draws: Draws, severity: int) -> Tensor:
    """A broken video packet: blocks show what stood above them."""
    batch, _, height, width = x.shape
    rows, columns = math.ceil(height / BLOCK), math.ceil(width / BLOCK)
    lost = gilbert(draws.uniform("block", (rows * columns,)), severity).reshape(batch, rows, columns)
    number = torch.arange(rows)[:, None]
    source = torch.where(lost, -1, number).cummax(1).values  # (B, rows, columns): the block row shown, -1 for none
    moved = (source - number).repeat_interleave(BLOCK, 1)[:, :height].repeat_interleave(BLOCK, 2)[:, :, :width]
    place = torch.arange(height)[:, None] + BLOCK * moved  # (B, H, W): the pixel row shown
    shown = x.gather(2, place.clamp(min=0)[:, None].expand_as(x).to(x.device))
    return shown.masked_fill_((place < 0)[:, None].to(x.device), 0)


@corruption(
    "sensor/dead_channel",
    **SHARED,
    reference="one colour at .5 .25 0 of its value, two at .25 0",
)
def dead_channel(x: Tensor, draws: Draws, severity: int) -> Tensor:
    """Colours fade or fail."""
    number, kept = DEAD_CHANNELS[severity]
    gains = torch.ones(len(x), 3, dtype=torch.float64)
    gains.scatter_(1, draws.permutation("channel", 3)[:, :number], kept)
    return (x * gains[:, :, None, None].to(x.device)).to(torch.uint8)  # truncated, as all bytes are


@corruption(
    "sensor/dead_pixels",
    **SHARED,
    reference="a share .01 .05 .1 .2 .4 of the pixels black, white or stuck at a colour, a third each",
    note="every picture has a mask of its own; the share is that of the draw, not an exact count",
)
def dead_pixels(x: Tensor, draws: Draws, severity: int) -> Tensor:
    """Pixels that no longer follow the light."""
    share = DEAD_SHARE[severity]
    chance = draws.uniform("pixel", x.shape[2:])[:, None].to(x.device)  # (B, 1, H, W)
    kind = torch.where(chance < share, chance * (STUCK + 1) / share, STUCK + 1).long()
    colours = draws.integers("colour", 256, x.shape[1:]).to(x)
    return torch.where(kind == STUCK, colours, x).masked_fill_(kind == BLACK, 0).masked_fill_(kind == WHITE, 255)


@corruption(
    "sensor/occlusion",
    **SHARED,
    reference="a black square over .05 .1 .2 .35 .5 of the picture",
    note="the square lies within the picture",
)
def occlusion(x: Tensor, draws: Draws, severity: int) -> Tensor:
    """Something stands before the lens."""
    height, width = x.shape[2:]
    side = min(round(math.sqrt(OCCLUDED_SHARE[severity] * height * width)), height, width)
    top, left = (draws.integers(name, size - side + 1)[:, None] for name, size in (("top", height), ("left", width)))
    down, across = torch.arange(height) - top, torch.arange(width) - left  # (B, H), (B, W)
    inside = ((down >= 0) & (down < side))[:, :, None] & ((across >= 0) & (across < side))[:, None]
    return x.masked_fill(inside[:, None].to(x.device), 0)
