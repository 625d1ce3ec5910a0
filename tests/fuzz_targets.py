"""Readers of files that others made, each as a function of bytes: what it may do is return or raise a named error.

Used by the tests with hypothesis and by scripts/fuzz.py with atheris.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import torch
from PIL import Image
from report_records import data, record
from safetensors.torch import save as safetensors_bytes

from mmbench.backbone.checkpoint import DESCRIPTION, load_meta, read_state
from mmbench.backbone.config import preset
from mmbench.claims import CLAIM, is_claimed
from mmbench.config import DataConfig
from mmbench.data.clip_list import read_list
from mmbench.data.features import load_audio, load_image
from mmbench.data.manifest import cavmae_manifest
from mmbench.data.store import INDEX, open_store
from mmbench.errors import MMBenchError
from mmbench.frozen import read_manifest
from mmbench.layout import EVENTS
from mmbench.records import load_record
from mmbench.report.outcome_files import SampleLists, read_compact, read_predictions
from mmbench.report.trial_files import read_curves
from mmbench.status_files import read_running
from mmbench.suite_file import load_suite
from mmbench.trackers import points
from mmbench.trials import read_trial, rows

LABELS = "index,mid,display_name\n0,/m/a,Rain\n"
SUITE = """
name: s
methods: [source, {name: lora-qv, regimes: [mixed], options: {rank: 4}}]
cases: [paper, {name: gone, missing: {which: audio, rate: 0.5}}]
datasets: [{name: synthetic-av, samples: 60, split: {test: 0.3}}]
backbones: [{name: cavmae-tiny, epochs: 1.5}]
seeds: [0, 1]
budget: {epochs: 1, optim: {name: adamw}}
"""
CLIPS = {"data": [{"video_id": "v_1", "wav": "a.wav", "video_path": "frames", "labels": "/m/a"}]}
CLAIMED = {"token": "x", "host": "elsewhere", "pid": 7, "born": "1"}
EVENT = {"event": "epoch", "job": "final/clean", "samples": 4, "of": 8, "loss": 0.5, "time": 1.0}


@dataclass(frozen=True)
class Target:
    """One kind of file: its name in a folder, what reads it, and sound examples to start from."""

    file: str
    read: Callable[[Path], object]
    seeds: tuple[bytes, ...]
    named: bool = True
    """Whether its errors must name the file."""


@contextmanager
def fresh_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="mmbench-fuzz-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def attempt(target: Target, content: bytes) -> MMBenchError | None:
    """Read a file of this content; returns the named error, and lets anything else out.

    Raises AssertionError where the error does not name the file, or where something else was written.
    """
    with fresh_folder() as folder:
        path = folder / target.file
        path.write_bytes(content)
        try:
            target.read(path)
        except MMBenchError as error:
            assert not target.named or path.name in str(error) or folder.name in str(error), error
            return error
        finally:
            assert {entry.name for entry in folder.iterdir()} <= {path.name, "clips.json", "labels.csv"}
    return None


def _suite(path: Path) -> None:
    rows(load_suite(path))


def _clips(path: Path) -> None:
    (path.parent / "labels.csv").write_text(LABELS)
    cavmae_manifest(DataConfig(name="m", manifest=path, label_csv=path.parent / "labels.csv")).fingerprint()


def _labels(path: Path) -> None:
    (path.parent / "clips.json").write_text(json.dumps(CLIPS))
    cavmae_manifest(DataConfig(name="m", manifest=path.parent / "clips.json", label_csv=path))


def _claim(path: Path) -> None:
    is_claimed(path.parent)


def _events(path: Path) -> None:
    read_running(path.parent, None)
    read_curves(path.parent)
    list(points(path))


def _picture(suffix: str) -> bytes:
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        Image.effect_noise((24, 16), 40).convert("RGB").save(file.name)
        return Path(file.name).read_bytes()


def _sound(suffix: str) -> bytes:
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        soundfile.write(file.name, np.sin(np.arange(1600) / 9) / 2, 16_000)
        return Path(file.name).read_bytes()


def _checkpoint() -> bytes:
    with tempfile.NamedTemporaryFile(suffix=".pth") as file:
        torch.save({"module.a.weight": torch.ones(2, 3), "b": torch.zeros(4)}, file.name)
        return Path(file.name).read_bytes()


def _predictions(path: Path) -> object:
    return read_predictions(path, record("LoRA", data=data(classes=("one", "two"))), SampleLists())


def _parquet() -> bytes:
    words = {name: pa.array(["x", "x"]) for name in ("sample", "case", "track", "stream", "update")}
    words["sample"] = pa.array(["one", "two"])
    numbers = {
        "severity": pa.array([0, 0], pa.int8()),
        "label": pa.array([[0], [1]], pa.list_(pa.int32())),
        "logits": pa.array([[0.5, 1.0], [0.1, 0.2]], pa.list_(pa.float32())),
    }
    out = pa.BufferOutputStream()
    pq.write_table(pa.table({**words, **numbers}), out)
    return bytes(out.getvalue().to_pybytes())


def _dump(value: object) -> bytes:
    return json.dumps(value).encode()


LISTS = (b'a,1,"rain, heavy",train\n', b"# YTID, start_seconds, labels\na, 0.0, x\n")


def targets() -> Mapping[str, Target]:
    spec = {"id": "a-s0-1", "suite": "s", "method": {"name": "source"}, "regime": None, "seed": 0, "tracks": ["blind"]}
    spec |= {"dataset": {"name": "synthetic-av"}, "backbone": {}, "backbone_folder": "b", "store_folder": "s"}
    spec |= {"cases": [], "train_cases": [], "budget": {}, "base": "b-s0-2"}
    meta = {"schema": 1, "config": preset("cavmae-tiny").to_dict(), "meta": {"a": "b"}, "sha256": "0" * 64}
    array = {"sha256": "0" * 64, "size_bytes": 1}
    kinds = ("audio", "image", "label", "available", "affected", "content")
    frozen = {"facts": {"a": 1}, "digest": "0" * 64, "ids": ["a"], "arrays": dict.fromkeys(kinds, array)}
    frozen |= {"written_by": {}, "checksum": "0" * 64}
    index = {"schema": 1, "name": "s", "classes": ["a"], "contents": {"ids": ["a"], "skipped": []}, "checksum": "0"}
    state = safetensors_bytes({"a": torch.ones(2, 3), "b": torch.zeros(4)})
    return {
        "suite": Target("suite.yaml", _suite, (SUITE.encode(),), named=False),  # names of parts name themselves
        "clips": Target("clips.json", _clips, (_dump(CLIPS),)),
        "list": Target("list.csv", read_list, LISTS),
        "labels": Target("labels.csv", _labels, (LABELS.encode(),), named=False),
        "record": Target("trial.json", load_record, (record("LoRA").model_dump_json().encode(),)),
        "spec": Target("spec.json", lambda path: read_trial(path.parent), (_dump(spec),)),
        "description": Target(DESCRIPTION, lambda path: load_meta(path.parent), (_dump(meta),)),
        "frozen": Target("set.json", read_manifest, (_dump(frozen),)),
        "index": Target(INDEX, lambda path: open_store(path.parent), (_dump(index),)),
        "claim": Target(CLAIM, _claim, (_dump(CLAIMED),)),
        "events": Target(EVENTS, _events, (_dump(EVENT) + b"\n" + _dump(EVENT),)),
        "pth": Target("weights.pth", read_state, (_checkpoint(),)),
        "safetensors": Target("weights.safetensors", read_state, (state,)),
        "wav": Target("a.wav", load_audio, (_sound(".wav"),)),
        "flac": Target("a.flac", load_audio, (_sound(".flac"),)),
        "jpeg": Target("a.jpg", lambda path: load_image(path, 16), (_picture(".jpg"),)),
        "png": Target("a.png", lambda path: load_image(path, 16), (_picture(".png"),)),
        "predictions": Target("p.parquet", _predictions, (_parquet(),)),
        "outcomes": Target("o.parquet", lambda path: read_compact(path, SampleLists()), (_parquet(),)),
    }
