"""The local mirror of results at a URL: trials run in it, and records are read from it.

The URL is the truth for all that this machine has not run itself since: what another machine ran again replaces what
lies here, and what it has put aside is put aside here. Only a record that the URL never had, or has in part, goes up.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from mmbench.files import cache_folder, write_atomic
from mmbench.layout import SUITE
from mmbench.records import MARKER, is_done
from mmbench.remote import Remote, note_sent, open_remote, url_of, was_sent
from mmbench.retry import put_aside


def mirror_folder(url: str, cache: Path) -> Path:
    """Where the trials of a URL run and its records are read."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", url.partition("://")[2]).strip(".-")[-60:]
    return cache / "results" / f"{name}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"


def typed_words(folder: Path) -> str:
    """A folder or URL as it was typed."""
    return url_of(folder) or str(folder)


def mirror_of(folder: Path) -> Path:
    """The folder itself, or for the URL it stands for its mirror with all that is finished there."""
    url = url_of(folder)
    if url is None:
        return folder
    mirror = mirror_folder(url, cache_folder())
    pull_all(open_remote(url), mirror)
    return mirror


def pull_all(remote: Remote, mirror: Path) -> None:
    """Bring every finished trial of the URL into its mirror, and the suite."""
    there = remote.markers()
    for trial, marker in there.items():
        folder = mirror / "trials" / trial
        if not is_done(folder) or (folder / MARKER).read_bytes() != marker:
            remote.pull(trial, folder)
        elif not was_sent(folder, marker):
            note_sent(folder, marker)
    for folder in _done(mirror):
        if folder.name not in there and was_sent(folder, (folder / MARKER).read_bytes()):
            put_aside(folder)
    suite = remote.get(SUITE)
    if suite is not None:
        write_atomic(mirror / SUITE, suite)


def push_rest(remote: Remote, mirror: Path) -> None:
    """Send what was finished here and is not, or not whole, at the URL, as a sweep was killed; follows `pull_all`."""
    there = remote.markers()
    for folder in _done(mirror):
        if there.get(folder.name) != (folder / MARKER).read_bytes():
            remote.push(folder)


def _done(mirror: Path) -> list[Path]:
    return [folder for folder in sorted((mirror / "trials").glob("*")) if is_done(folder)]
