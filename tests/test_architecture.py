"""The shape of the code: who may import whom, and that the engine knows no method and no corruption."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmbench import registry

ROOT = registry.ROOT
PACKAGES = ("mmbench", "methods", "corruptions")
# Lowest first. A module may import from its own layer and from those below, never from one above.
LAYERS = (
    (
        "errors",
        "rng",
        "cards",
        "method_options",
        "metrics",
        "strict_yaml",
        "layout",
        "strict_json",
        "formula",
        "files",
        "logs",
        "assets",
        "one_device",
    ),
    ("parallel", "ahead", "picture_file", "ranks"),
    ("registry",),
    (
        "backbone",
        "corruption",
        "imaging",
        "frost",
        "records",
        "profile_rows",
        "cases",
        "config",
        "suite_file",
        "suites",
    ),
    ("data", "pipeline", "environment", "audio_source", "audio_mix", "audio_scenes", "asset_checks"),
    ("meter", "ledger", "meta_pass", "frozen", "feed", "method", "strategy", "online", "online_parts"),
    ("bench", "plain", "resume", "row_checks", "trials", "prepare"),
    ("router", "prefix", "loss_log", "ddp", "steps"),
    ("train", "claims", "endings"),
    ("remote",),
    ("evaluate", "costs", "outputs", "source", "conformance_bed", "conformance_online_bed", "streams"),
    (
        "tune",
        "conformance_checks",
        "conformance_resume",
        "conformance",
        "conformance_online",
        "conformance_corruptions",
    ),
    ("desk", "launch", "run", "run_online", "executors", "report"),
    ("dispatch", "retry", "mirror"),
    ("sweep",),
)
LAYER = {name: level for level, names in enumerate(LAYERS) for name in names}
TOP = len(LAYERS)  # the command line and what its verbs do


def files() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def imports(path: Path, deferred: bool = True) -> Iterator[str]:
    """Modules of this project that a file imports; without `deferred`, only those it imports when loaded."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        checking = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if checking or (not deferred and isinstance(node, ast.FunctionDef)):
            skipped |= set(ast.walk(node))
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def unit(module: str) -> str | None:
    """`mmbench.data.store` belongs to `data`."""
    parts = module.split(".")
    return parts[1] if parts[0] == "mmbench" and len(parts) > 1 else None


def level(name: str) -> int:
    return LAYER.get(name, TOP)


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    mine = unit(module)
    for imported in imports(path):
        theirs = unit(imported)
        if mine is None:  # methods and corruptions stand on the engine's contracts, not on its loop
            if theirs is not None:
                assert level(theirs) <= LAYER["method"], f"{module} imports {imported}"
        elif imported.split(".")[0] in ("methods", "corruptions"):
            pytest.fail(f"{module} imports {imported}: the registry finds it by name")
        elif theirs is not None and theirs != mine and (ROOT / "mmbench").joinpath(theirs).with_suffix(".py").exists():
            assert level(theirs) <= level(mine), f"{module} imports {imported}"


def test_every_layer_exists() -> None:
    known = {path.stem for path in (ROOT / "mmbench").glob("*.py")} | {
        path.name for path in (ROOT / "mmbench").iterdir() if path.is_dir()
    }
    assert set(LAYER) <= known


@pytest.mark.parametrize("path", [p for p in files() if p.name == "__init__.py"], ids=lambda p: p.parent.name)
def test_init_files_hold_nothing(path: Path) -> None:
    assert ast.parse(path.read_text()).body == []


def engine() -> list[Path]:
    return [path for path in files() if path.is_relative_to(ROOT / "mmbench")]


# What costs are compared with, in words of the paper: full fine-tuning.
ALLOWED = {"efficiency.py": {"full-finetune"}}


@pytest.mark.parametrize("path", engine(), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_engine_names_no_method_and_no_corruption(path: Path) -> None:
    registries = (registry.methods(), registry.strategies(), registry.onlines(), registry.corruptions())
    built_in = {name for found in registries for name in found.names()}
    # `source` is a word of its own: the source model, a data source.
    names = built_in - {"source"} - ALLOWED.get(path.name, set())
    tree = ast.parse(path.read_text(encoding="utf-8"))
    named = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert not named & names


TORCH_FREE = (
    "config",
    "suite_file",
    "formula",
    "registry",
    "cards",
    "records",
    "cases",
    "trials",
    "errors",
    "method_options",
    "cli",
    "runner",
    "status",
    "status_verb",
)


@pytest.mark.parametrize("name", TORCH_FREE)
def test_what_must_start_at_once_does_not_load_torch(name: str) -> None:
    assert not heavy(ROOT / "mmbench" / f"{name}.py", set())


@pytest.mark.parametrize("path", sorted((ROOT / "mmbench" / "report").glob("*.py")), ids=lambda path: path.stem)
def test_the_report_reads_records_only(path: Path) -> None:
    assert not heavy(path, set())


def heavy(path: Path, seen: set[Path]) -> list[str]:
    """The chain of imports that leads to torch when a module is loaded, if there is one."""
    seen.add(path)
    for module in imports(path, deferred=False):
        if module.split(".")[0] in ("torch", "timm", "peft"):
            return [path.stem, module]
        found = ROOT.joinpath(*module.split(".")).with_suffix(".py")
        if module.startswith("mmbench") and found.exists() and found not in seen:
            chain = heavy(found, seen)
            if chain:
                return [path.stem, *chain]
    return []


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 45, node.name


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_loaded_that_could_run_code(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not {"pickle", "shelve", "dill"} & {alias.name for alias in node.names}
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            settings = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert called not in ("eval", "exec", "pickle.loads", "yaml.unsafe_load")
            assert called != "torch.load" or settings.get("weights_only") == "True"
            assert called not in ("torch.manual_seed", "np.random.seed", "random.seed") or path.stem in SEEDERS


# The one place where a process seeds the global generators (dropout inside library layers), and the check bed.
SEEDERS = ("run", "conformance", "conformance_checks")
