"""Files made to harm: code that would run, sizes that no memory holds, paths that lead out, secrets written down."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import resource
import struct
import subprocess
import sys
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from fuzz_targets import attempt, targets
from manifests import config_of, entry
from PIL import Image
from report_records import record, save

from mmbench.backbone.checkpoint import read_state
from mmbench.claims import CLAIM, is_claimed
from mmbench.config import Suite
from mmbench.data.features import load_audio, load_image
from mmbench.data.manifest import cavmae_manifest
from mmbench.data.source import BrokenFileError
from mmbench.errors import CheckpointError, MMBenchError
from mmbench.files import RecordError
from mmbench.layout import EVENTS, PREDICTIONS, SPEC
from mmbench.records import MARKER, RECORD, TrialRecord, finished_record, save_record
from mmbench.report.aggregate import load_board
from mmbench.report.board import portable_suite
from mmbench.report.site.content import arrange
from mmbench.report.site.model import Extras
from mmbench.report.site.write import write_site
from mmbench.report.trial_files import read_mistakes
from mmbench.status_files import read_running
from mmbench.suite_file import load_suite, parse_suite
from mmbench.sweep import SweepOptions, run_suite
from mmbench.trials import read_trial

TARGETS = targets()
GIB = 2**30


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.fixture
def bounded() -> Any:
    """Fails a test that took half a gibibyte on its way to the refusal."""
    before = peak_bytes()
    yield
    assert peak_bytes() - before < GIB / 2


# Checkpoints


def archive(path: Path, content: bytes, compression: int = zipfile.ZIP_STORED, **parts: bytes) -> Path:
    """A file as torch.save lays it out, with this pickle."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("m/data.pkl", content)
        file.writestr("m/version", b"3\n")
        file.writestr("m/byteorder", b"little")
        for name, body in parts.items():
            file.writestr(f"m/data/{name}", body)
    return path


def tensor_pickle(numel: int, size: int, stride: int) -> bytes:
    """{'w': a tensor of this shape over a storage that tells this many numbers}."""

    def number(value: int) -> bytes:
        return b"\x8a\x08" + struct.pack("<q", value)

    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0" + b"0X\x03\0\0\0cpu" + number(numel) + b"tQ"
    shape = number(0) + number(size) + b"\x85" + number(stride) + b"\x85\x89ccollections\nOrderedDict\n)Rt"
    return b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n(" + storage + shape + b"Rs."


def test_the_handmade_checkpoint_is_one_that_torch_reads(tmp_path: Path) -> None:
    path = archive(tmp_path / "w.pth", tensor_pickle(4, 4, 1), **{"0": np.arange(4, dtype="<f4").tobytes()})
    assert read_state(path)["w"].tolist() == [0, 1, 2, 3]


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tensor_pickle(2**40, 2**40, 1), "cannot read checkpoint"),
        (tensor_pickle(4, 2**40, 1), "cannot read checkpoint"),
        (tensor_pickle(4, 2**40, 0), "for which the file holds too few numbers"),
        (b"\x80\x02cbuiltins\nbytearray\n\x8a\x08" + struct.pack("<q", 2**40) + b"\x85R.", "holds code"),
        (b"\x80\x02)q\0" + b"".join(b"h%ch%c\x86q%c" % (n, n, n + 1) for n in range(90)) + b"N}h\x5aNs.", "unfolds"),
        (b"\x80\x02}r\xff\xff\xff\x7f.", "an empty dict"),
    ],
    ids=["storage", "shape", "stride-0", "bytearray", "nested-keys", "memo"],
)
def test_a_small_checkpoint_that_asks_for_everything_is_refused(
    tmp_path: Path, bounded: None, content: bytes, reason: str
) -> None:
    path = archive(tmp_path / "w.pth", content, **{"0": bytes(16)})
    with pytest.raises(CheckpointError, match=reason):
        read_state(path)


def test_a_compressed_checkpoint_is_not_unpacked(tmp_path: Path, bounded: None) -> None:
    body = {"0": bytes(2**26)}
    path = archive(tmp_path / "w.pth", tensor_pickle(2**24, 2**24, 1), zipfile.ZIP_DEFLATED, **body)
    assert path.stat().st_size < 2**20
    body.clear()
    with pytest.raises(CheckpointError, match="compressed parts"):
        read_state(path)


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_a_payload_never_runs(tmp_path: Path, protocol: int) -> None:
    trace = tmp_path / "ran"
    payload = pickle.dumps({"w": Touch(trace)}, protocol)
    (tmp_path / "raw.pth").write_bytes(payload)
    archive(tmp_path / "zip.pth", payload)
    torch.save({"w": Touch(trace)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("raw.pth", "zip.pth", "old.pth"):
        with pytest.raises(CheckpointError, match=name):
            read_state(tmp_path / name)
    assert not trace.exists()
    pickle.loads(payload)
    assert trace.exists()  # or it would have proved nothing


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (torch.full((2,), 1e300, dtype=torch.float64), "NaN or infinite"),
        (torch.ones(2, dtype=torch.complex64), "save it as plain numbers"),
        (torch.ones(2).to(torch.float8_e4m3fn), "save it as plain numbers|cannot read"),
        (torch.ones(2, 2).to_sparse(), "save it as plain numbers|never run"),
        (torch.ones(2, device="meta"), "save it as plain numbers|never run"),
    ],
    ids=["overflow", "complex", "eight-bits", "sparse", "meta"],
)
def test_tensors_that_are_no_weights_are_refused(tmp_path: Path, value: torch.Tensor, reason: str) -> None:
    torch.save({"w": value}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=reason):
        read_state(tmp_path / "w.pth")


@pytest.mark.parametrize("size", [2**20, 2**40, 2**63 - 1])
def test_a_header_of_safetensors_that_lies_is_refused(bounded: None, size: int) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [size], "data_offsets": [0, 4 * size]}}).encode()
    for length in (len(header), size):
        error = attempt(TARGETS["safetensors"], struct.pack("<Q", length) + header + bytes(16))
        assert isinstance(error, CheckpointError)


# Sounds and pictures


def png(width: int, height: int) -> bytes:
    """A header of this size, and a few bytes that unpack to many."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(2**20))) + chunk(b"IEND", b"")


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "content",
    [
        *(png(*size) for size in ((60_000, 60_000), (2**31 - 1, 1), (1, 2**31 - 1), (9000, 9000), (20_000, 8))),
        b"P6 100000 100000 255\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(/tmp/x) (w) file\n",
    ],
    ids=["bomb", "wide", "tall", "large", "narrow", "ppm", "postscript"],
)
def test_pictures_that_unpack_without_end_are_refused(tmp_path: Path, bounded: None, content: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(BrokenFileError, match=r"a\.jpg.*not a readable picture"):
        load_image(tmp_path / "a.jpg", 224)


def test_a_narrow_but_honest_picture_is_refused_before_it_is_scaled(tmp_path: Path, bounded: None) -> None:
    Image.new("RGB", (1, 60_000)).save(tmp_path / "a.png")
    with pytest.raises(BrokenFileError, match="1x60000 pixels"):
        load_image(tmp_path / "a.png", 224)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("rate", [1, 999, 2**31 - 1])
def test_a_sound_of_an_absurd_rate_is_not_resampled(tmp_path: Path, bounded: None, rate: int) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(200_000), rate)
    with pytest.raises(BrokenFileError, match=f"sample rate is {rate} Hz"):
        load_audio(tmp_path / "a.wav")


@pytest.mark.timeout(30)
def test_a_sound_whose_header_promises_days_is_refused(tmp_path: Path, bounded: None) -> None:
    content = io.BytesIO()
    soundfile.write(content, np.zeros(1600), 16_000, format="FLAC")
    flac = bytearray(content.getvalue())
    flac[21] |= 0x0F  # the 36 bits that tell the number of samples
    flac[22:26] = b"\xff" * 4
    (tmp_path / "a.flac").write_bytes(flac)
    with pytest.raises(BrokenFileError, match=r"a\.flac"):
        load_audio(tmp_path / "a.flac")


# Paths


@pytest.mark.parametrize("id", ["../../escape", "/etc/passwd", "a/b", "..", ".hidden", "a\nb", "a\0b", ""])
def test_a_record_whose_id_is_a_path_is_refused(tmp_path: Path, id: str) -> None:
    save(tmp_path, [record("LoRA")])
    (place,) = tmp_path.glob("**/*.json")
    content = json.loads(place.read_text())
    content["trial"]["id"] = id
    place.write_text(json.dumps(content))
    with pytest.raises(RecordError, match=r"trial\.id"):
        load_board(tmp_path)


@pytest.mark.parametrize("base", ["../../x", "/etc", "a/../b"])
def test_a_spec_whose_base_is_a_path_is_refused(base: str) -> None:
    content = json.loads(TARGETS["spec"].seeds[0]) | {"base": base}
    assert "base" in str(attempt(TARGETS["spec"], json.dumps(content).encode()))


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "a b", ".", "", "x" * 100])
def test_a_suite_whose_name_is_a_path_is_refused(name: str) -> None:
    with pytest.raises(MMBenchError, match="name"):
        parse_suite({"name": name, "methods": ["source"]})


def test_a_manifest_that_leads_out_of_its_folder_reads_sounds_and_nothing_else(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("password")
    folder = tmp_path / "clips"
    good = entry(folder, "v_1", "/m/aaa")
    (folder / "link.wav").symlink_to(secret)
    paths = ["../secret.txt", str(secret), "link.wav", "\ud800", "a" * 9000, "/dev/zero", "a\0b"]
    odd = [{**good, "video_id": f"v_{n + 2}", "wav": path} for n, path in enumerate(paths)]
    names = ["../v_1", "/etc/passwd", "a/b", "v\0"]
    source = cavmae_manifest(config_of(folder, [good, *({**good, "video_id": name} for name in names)]))
    assert [item.id for item in source.items] == ["v_1"] and len(source.problems) == len(names)
    with pytest.raises(MMBenchError, match=r"clips\.json"):
        cavmae_manifest(config_of(folder, odd))  # half of a character is no JSON of ours
    odd = [{**good, "video_id": "v_1", "wav": path} for path in ("../secret.txt", str(secret), "link.wav", "/dev/zero")]
    for clip in odd:
        try:
            (item,) = cavmae_manifest(config_of(folder, [clip])).items
            source.read(item, 16)
        except MMBenchError as error:
            assert "password" not in str(error)
        else:
            raise AssertionError(f"{clip['wav']} was read")


# Predictions


def flood(path: Path, columns: dict[str, pa.Array], repeats: int) -> None:
    """A few kilobytes that unpack to these columns many times over."""
    table = pa.table(columns)
    with pq.ParquetWriter(path, table.schema, compression="zstd") as file:
        for _ in range(repeats):
            file.write_table(table)
    assert path.stat().st_size < 2**20


def same_words(text: str, rows: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([text])).cast(pa.string())


def flood_of_predictions(path: Path, repeats: int) -> None:
    rows = 200_000
    words = {name: same_words("x", rows) for name in ("sample", "case", "track", "stream", "update")}
    shape = {"label": (1, np.int32), "logits": (10, np.float32)}
    lists = {
        name: pa.ListArray.from_arrays(np.arange(rows + 1, dtype=np.int32) * width, np.zeros(rows * width, kind))
        for name, (width, kind) in shape.items()
    }
    flood(path, {**words, "severity": pa.array(np.zeros(rows, np.int8)), **lists}, repeats)


def flooded(folder: Path, claimed: int, repeats: int) -> tuple[TrialRecord, Path]:
    """A trial whose record claims so many samples a case."""
    entry = record("LoRA")
    entry = entry.model_copy(update={"scores": tuple(replace(score, n=claimed) for score in entry.scores)})
    place = folder / "trials" / entry.trial.id
    place.mkdir(parents=True)
    save_record(entry, place)
    flood_of_predictions(place / "predictions.parquet", repeats)
    return entry, place


@pytest.mark.timeout(60)
def test_predictions_that_unpack_to_any_size_are_refused(tmp_path: Path, bounded: None) -> None:
    entry, place = flooded(tmp_path, 300, 20)
    board = load_board(tmp_path)
    assert board.outcomes.all_of(entry) == {}
    assert "holds 4000000 rows where the record's scores stand on 1200" in board.outcomes.problems[0]
    with pytest.raises(RecordError, match="its mistakes are left out"):
        read_mistakes(entry, place)


def test_a_record_that_claims_any_size_does_not_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmbench.report.prediction_groups.MOST_VALUES", 2**20)
    entry, _ = flooded(tmp_path, 10**12, 1)
    board = load_board(tmp_path)
    assert board.outcomes.all_of(entry) == {}
    assert re.search("holds [0-9]+ logits of x .*; at most 1048576 are read", board.outcomes.problems[0])


@pytest.mark.timeout(60)
def test_a_boards_outcomes_that_unpack_to_any_size_are_refused(tmp_path: Path, bounded: None) -> None:
    save(tmp_path, [record("LoRA")])
    rows = 100_000
    words = {name: same_words("x", rows) for name in ("trial", "case", "track", "stream", "update")}
    blob = same_words("\0" * 500, rows).cast(pa.binary())
    empty = np.zeros(rows + 1, np.int32)
    lists = {
        "samples": pa.ListArray.from_arrays(empty, pa.array([], pa.string())),
        "labels": pa.ListArray.from_arrays(empty, pa.array([], pa.int32())),
    }
    numbers = {"severity": pa.array(np.zeros(rows, np.int8)), "list": pa.array(np.zeros(rows, np.int32))}
    flood(tmp_path / "outcomes.parquet", {**words, **numbers, "predicted": blob, "confidence": blob, **lists}, 50)
    board = load_board(tmp_path)
    assert board.outcomes.all_of(board.records[0]) == {}
    assert "are too many" in board.outcomes.problems[0]


@pytest.mark.parametrize(
    "contents",
    [
        *({"cases": cases} for cases in ([5], 5, ["complete"], [{}], [{"name": ["x"]}], [{"name": "x", "audio": 1}])),
        *({"streams": streams} for streams in ("x", [1, "x"])),
        *({"cases": [{"name": "x", "missing": missing}]} for missing in (3, {"rate": "x"}, {"rate": None})),
        {"split": [1]},
        {"tracks": [None]},
    ],
    ids=str,
)
def test_a_record_whose_contents_are_none_stops_no_board(tmp_path: Path, contents: dict[str, Any]) -> None:
    save(tmp_path, [record("LoRA"), record("good")])
    path = next(path for path in tmp_path.glob("records/*") if "LoRA" in path.read_text())
    facts = json.loads(path.read_text())
    facts["trial"]["contents"] = contents
    path.write_text(json.dumps(facts))
    board = load_board(tmp_path)
    assert [entry.trial.title for entry in board.records] == ["good"]
    assert "trial.contents" in board.problems[0] and next(iter(contents)) in board.problems[0]


# Files without an end


@pytest.fixture
def pipes(tmp_path: Path) -> Path:
    """A board of one record beside which whatever is read is a pipe that nobody writes to; returns a trial's folder."""
    entry = record("LoRA")
    save(tmp_path, [entry])
    place = tmp_path / "trials" / entry.trial.id
    place.mkdir(parents=True)
    beside = (place / name for name in (EVENTS, SPEC, CLAIM, PREDICTIONS))
    for path in (*beside, *(tmp_path / name for name in ("suite.yaml", "outcomes.parquet", "records/pipe.json"))):
        os.mkfifo(path)
    return place


@pytest.mark.timeout(30)
def test_pipes_of_a_board_are_not_waited_for(tmp_path: Path, pipes: Path) -> None:
    board = load_board(tmp_path)
    assert board.problems == ("cannot read record records/pipe.json: no plain file",)
    assert board.outcomes.all_of(board.records[0]) == {}
    assert write_site(arrange(board), tmp_path / "site", Extras()).pages


@pytest.mark.timeout(30)
def test_pipes_of_a_trial_are_not_waited_for(tmp_path: Path, pipes: Path) -> None:
    assert read_running(pipes, None).host == "" and is_claimed(pipes)
    for name in (RECORD, MARKER):
        os.mkfifo(pipes / name)
    assert finished_record(pipes) is None
    with pytest.raises(MMBenchError, match="no plain file"):
        read_trial(pipes)
    with pytest.raises(MMBenchError, match="no plain file"):
        load_suite(tmp_path / "suite.yaml")


@pytest.mark.parametrize(
    "text", ["title: 2020-99-99", "a: " + "9" * 5000, "a: " + "[" * 5000, "!!python/name:os.system", "\0", "\ud83d"]
)
def test_a_site_of_a_suite_that_is_none_has_no_title_and_all_its_pages(tmp_path: Path, text: str) -> None:
    save(tmp_path, [record("LoRA")])
    (tmp_path / "suite.yaml").write_bytes(text.encode(errors="surrogatepass"))
    assert write_site(arrange(load_board(tmp_path)), tmp_path / "site", Extras()).pages


def test_a_suite_and_a_record_may_be_links_and_no_devices(tmp_path: Path) -> None:
    (tmp_path / "real.yaml").write_text("name: s\nmethods: [source]\n")
    (tmp_path / "s.yaml").symlink_to(tmp_path / "real.yaml")
    assert load_suite(tmp_path / "s.yaml").name == "s"
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    with pytest.raises(MMBenchError, match="no plain file"):
        load_suite(tmp_path / "zero.yaml")


# Text


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(12)),
        "name: &a [*a]",
        f"name: s\nmethods: [{','.join(f'm{n}' for n in range(2000))}]\nseeds: [{','.join(map(str, range(2000)))}]",
        "name: " + "[" * 100_000,
        "name: s\nmethods: [source]\ncases: [{name: x, missing: {which: audio, rate: .nan}}]",
        f"name: s\nmethods: [source]\nseeds: {list(range(500))}\nbackbones: {[f'b{n}' for n in range(500)]}",
        f"name: {'x' * 2**21}",
    ],
    ids=["bomb", "loop", "crowd", "deep", "nan", "grid", "long"],
)
def test_suites_without_end_are_refused_soon(tmp_path: Path, bounded: None, text: str) -> None:
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(MMBenchError):
        load_suite(tmp_path / "s.yaml")


@pytest.mark.parametrize("text", ["[]", "1", "methods: 3", "datasets: [{root: [1]}]", "a: *b", "assets: {x: 1}"])
def test_a_board_of_a_suite_that_is_none_says_so(text: str) -> None:
    try:
        assert isinstance(portable_suite(text), str)
    except RecordError as error:
        assert "suite.yaml" in str(error)


# Secrets

SECRETS = {
    "MY_TOKEN": "tok-5f1c0e9a7b",
    "AWS_SECRET_ACCESS_KEY": "aws-93b2d7c1f0",
    "WANDB_API_KEY": "wandb-0d9e8c7b6a",
    "HF_TOKEN": "hf-77aa66bb55",
}


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


def leaks(folder: Path) -> list[str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [f"{path}: {name}" for path in files for name, v in SECRETS.items() if v.encode() in path.read_bytes()]


@pytest.mark.slow
def test_nothing_a_run_leaves_holds_a_secret(tmp_path: Path, cache: Path, secrets: None) -> None:
    suite = Suite.model_validate(
        {
            "name": "s",
            "methods": ["source"],
            "cases": ["missing-audio"],
            "seeds": [0],
            "datasets": [{"name": "synthetic-av", "samples": 60}],
            "backbones": [{"name": "cavmae-tiny", "epochs": 0.5}],
        }
    )
    run_suite(suite, tmp_path / "out", SweepOptions(torch.device("cpu"), 1), lambda *_: None)
    assert (tmp_path / "out" / "suite.yaml").is_file() and any((tmp_path / "out").glob("trials/*/trial.json"))
    board = subprocess.run(
        [sys.executable, "-m", "mmbench", "leaderboard", str(tmp_path / "out"), "--out", str(tmp_path / "board")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert board.returncode == 0, board.stderr
    assert leaks(tmp_path) == [] and not any(value in board.stdout + board.stderr for value in SECRETS.values())
