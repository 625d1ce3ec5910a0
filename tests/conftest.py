"""One thread for every test, and plugins that do not outlive theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from mmbench import registry

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One cache for all tests, so that stores and source models are built once."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMBENCH_CACHE", str(folder))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield folder


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def use_plugin(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Write a plugin file and register it for the length of the test."""

    def use(source: str, name: str = "plugin.py") -> Path:
        path = tmp_path / name
        path.write_text(source, encoding="utf-8")
        registry.use_plugins((path,))
        return path

    yield use
    registry._plugins.clear()
    registry.use_plugins(())
