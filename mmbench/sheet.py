"""A labelled grid of tiles as one picture, and the tiles: pictures and spectrograms in the colours of every sheet."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mmbench.data.features import AUDIO_MEAN, AUDIO_STD, IMAGE_MEAN, IMAGE_STD

Tile = NDArray[np.uint8]  # (h, w, 3)

DARKEST, BRIGHTEST = -14.0, 6.0  # log-mel at the ends of the colour map
COLOURS = "magma"
GAP = 4  # pixels between tiles
MARGIN = 10
TITLE_SIZE, TEXT_SIZE = 16, 12  # pixels
LINE = 15  # pixels from one line of text to the next
LABEL_LETTERS = 26  # of a row's label, before a line is broken
INK, FAINT = "black", "#555555"
PAPER = (238, 238, 238)  # not white, so that a white tile has an edge
ELLIPSIS = "..."


@dataclass(frozen=True)
class Row:
    """A line of tiles; they may differ in size, and there may be fewer than columns."""

    label: str
    """First what it is, then details, a line each."""
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Sheet:
    title: str
    subtitle: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    foot: str


def picture_tile(image: Tensor, side: int) -> Tile:
    """A normalised picture (3, H, W) at side x side; what lies outside of black and white is cut."""
    mean, std = (torch.tensor(each)[:, None, None] for each in (IMAGE_MEAN, IMAGE_STD))
    levels = (255 * (image * std + mean)).round().clamp(0, 255).to(torch.uint8)
    picture = Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())
    if picture.size != (side, side):
        picture = picture.resize((side, side), Image.Resampling.BOX)
    return np.asarray(picture)


def spectrogram_tile(mel: Tensor, width: int, height: int) -> Tile:
    """A normalised log-mel (T, 128) with time to the right and low tones at the bottom."""
    raw = mel.T.flip(0) * AUDIO_STD + AUDIO_MEAN  # (128, T)
    share = ((raw - DARKEST) / (BRIGHTEST - DARKEST)).clamp(0, 1).contiguous().numpy()
    plane = Image.fromarray(share).resize((width, height), Image.Resampling.BOX)
    colours = matplotlib.colormaps[COLOURS](np.asarray(plane))[..., :3]  # (height, width, 3) of 0..1
    return np.asarray((255 * colours).round().astype(np.uint8))


def stacked(tiles: Sequence[Tile]) -> Tile:
    """Tiles of one width below one another."""
    line = np.full((GAP // 2, tiles[0].shape[1], 3), PAPER, dtype=np.uint8)
    parts = [part for tile in tiles for part in (line, tile)]
    return np.concatenate(parts[1:])


def draw(sheet: Sheet) -> Image.Image:
    """The whole sheet, tiles pixel by pixel."""
    labels = [_broken(row.label) for row in sheet.rows]
    left = 2 * MARGIN + round(max(_width(line, bold=True) for lines in labels for line in lines))
    widths = [max(row.tiles[i].shape[1] for row in sheet.rows if i < len(row.tiles)) for i in range(len(sheet.columns))]
    whole = max(left + sum(width + GAP for width in widths) + MARGIN, MARGIN * 2 + _title_width(sheet))
    notes = [_wrapped(text, whole - 2 * MARGIN) for text in (sheet.subtitle, sheet.foot)]
    top = MARGIN + TITLE_SIZE + 6 + LINE * (len(notes[0]) + 1) + MARGIN
    heights = [
        max(LINE * len(lines), *(tile.shape[0] for tile in row.tiles))
        for row, lines in zip(sheet.rows, labels, strict=True)
    ]
    below = top + sum(height + GAP for height in heights)
    page = Image.new("RGB", (whole, below + LINE * len(notes[1]) + MARGIN), PAPER)
    pen = ImageDraw.Draw(page)
    pen.text((MARGIN, MARGIN - 2), sheet.title, INK, _font(TITLE_SIZE, bold=True))
    _write(pen, (MARGIN, MARGIN + TITLE_SIZE + 6), notes[0])
    for place, (name, width) in enumerate(zip(sheet.columns, widths, strict=True)):
        x = left + sum(width + GAP for width in widths[:place])
        pen.text((x, top - LINE - 2), _cut(name, width), INK, _font(TEXT_SIZE, bold=True))
    for row, lines, height in zip(sheet.rows, labels, heights, strict=True):
        pen.text((MARGIN, top), lines[0], INK, _font(TEXT_SIZE, bold=True))
        _write(pen, (MARGIN, top + LINE), lines[1:])
        for place, tile in enumerate(row.tiles):
            page.paste(Image.fromarray(tile), (left + sum(width + GAP for width in widths[:place]), top))
        top += height + GAP
    _write(pen, (MARGIN, below + MARGIN // 2), notes[1])
    return page


def _write(pen: ImageDraw.ImageDraw, place: tuple[int, int], lines: list[str]) -> None:
    for number, line in enumerate(lines):
        pen.text((place[0], place[1] + LINE * number), line, FAINT, _font(TEXT_SIZE))


def _title_width(sheet: Sheet) -> int:
    return round(_font(TITLE_SIZE, bold=True).getlength(sheet.title))


def _broken(label: str) -> list[str]:
    return [part for line in label.split("\n") for part in textwrap.wrap(line, LABEL_LETTERS) or [""]]


def _wrapped(text: str, width: int) -> list[str]:
    """Lines that fit into so many pixels."""
    lines: list[str] = []
    for word in text.split():
        if lines and _width(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _cut(text: str, width: int) -> str:
    """The text, or as much of its beginning as fits."""
    if _width(text, bold=True) <= width:
        return text
    while text and _width(text + ELLIPSIS, bold=True) > width:
        text = text[:-1]
    return text + ELLIPSIS


def _width(text: str, bold: bool = False) -> float:
    return _font(TEXT_SIZE, bold).getlength(text)


@lru_cache(maxsize=8)
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The font that comes with matplotlib, so that sheets look the same everywhere."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / f"DejaVuSans{'-Bold' if bold else ''}.ttf"), size)
