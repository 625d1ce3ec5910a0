"""What a PyTorch file may be before it is opened: an archive as large as it says, whose pickle builds only tensors.

`torch.load(weights_only=True)` runs no foreign code, but it unpacks compressed parts, makes byte arrays and hashes
nested tuples as the file asks, so a small file can still take all memory or never end.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from pathlib import Path

MOST_PICKLE_BYTES = 2**24
"""The pickle names tensors and holds none; that of the base model takes some 100 kB."""
MOST_VALUES = 2**20
"""With every value that is used again counted again."""
TENSOR_PARTS = re.compile(
    r"torch\._utils _rebuild_(tensor_v2|parameter)|collections OrderedDict|torch [A-Za-z0-9]+Storage"
    r"|torch\.storage UntypedStorage"
)
ADDING = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD", "ADDITEMS")


def check_archive(path: Path) -> None:
    """Raises ValueError for a file that must not be handed to torch.load, OSError or BadZipFile for no archive."""
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
            raise ValueError("it holds compressed parts; torch.save writes none")
        if sum(part.file_size for part in parts) > path.stat().st_size:
            raise ValueError("its parts are larger than the file")
        pickles = [part for part in parts if part.filename.endswith("/data.pkl")]
        if len(pickles) != 1 or pickles[0].file_size > MOST_PICKLE_BYTES:
            raise ValueError(f"it holds no single data.pkl of at most {MOST_PICKLE_BYTES} bytes")
        _check_pickle(archive.read(pickles[0]))


def _check_pickle(content: bytes) -> None:
    """Follow the pickle's stack without building anything; each entry is the number of values it stands for."""
    stack: list[int] = []
    marks: list[int] = []
    memo: dict[int, int] = {}
    for code, argument, _ in pickletools.genops(content):
        if code.name == "GLOBAL" and not TENSOR_PARTS.fullmatch(str(argument)):
            raise ValueError("it is no PyTorch file, or holds code beside its tensors, which is never run")
        if code.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else int(str(argument))] = stack[-1]
        elif code.name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[int(str(argument))])
        elif code.name == "MARK":
            marks.append(len(stack))
        else:
            kept = marks.pop() if pickletools.markobject in code.stack_before else len(stack) - len(code.stack_before)
            kept -= code.name in ADDING and pickletools.markobject in code.stack_before  # what they add to
            size = 1 + sum(stack[max(kept, 0) :])
            if size > MOST_VALUES:
                raise ValueError(f"it unfolds to more than {MOST_VALUES} values")
            stack[max(kept, 0) :] = [size] * len(code.stack_after)
