"""Opening picture files of others: known formats, of a size that memory holds, told by the header before decoding.

Torch-free, so that many processes can do it side by side.
"""

from __future__ import annotations

import contextlib
import stat
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MOST_PIXELS = 2**26
MOST_NARROW = 64  # times longer than wide: scaled to a model's height it would be as many times larger
# Pillow would try every format it knows whatever the suffix, and hand PostScript to another program.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")

Decoded = TypeVar("Decoded")


def read_picture(path: Path, decode: Callable[[Image.Image], Decoded]) -> Decoded:
    """What `decode` makes of a picture; raises ValueError with the reason in one line, which does not name the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is the lower one
            with Image.open(path, formats=FORMATS) as file:
                refuse_absurd(*file.size)
                return decode(file)
    except Exception as error:  # decoders raise errors of every kind on damaged files
        text = str(error)
        raise ValueError(text.splitlines()[0] if text else type(error).__name__) from error


def resize_and_crop(picture: Image.Image, size: int) -> NDArray[np.uint8]:
    """RGB picture -> (size, size, 3) uint8."""
    width, height = picture.size
    short = min(width, height)
    if short != size:
        width, height = (size if side == short else int(size * side / short) for side in (width, height))
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(picture.crop((left, top, left + size, top + size)))


def not_regular(path: Path) -> bool:
    """Pipes and devices may give no end, or nothing for ever; what is not there, the decoder says itself."""
    with contextlib.suppress(OSError):
        mode = path.stat().st_mode
        return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)
    return False


def refuse_absurd(width: int, height: int) -> None:
    """Raises ValueError for a picture that would take more memory than any of use does."""
    if width * height > MOST_PIXELS or max(width, height) > MOST_NARROW * min(width, height):
        most = f"{MOST_PIXELS} pixels, {MOST_NARROW} times longer than wide"
        raise ValueError(f"{width}x{height} pixels; at most {most} are read")
