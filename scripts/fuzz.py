"""Search by coverage for files that end in anything but a named error: scripts/fuzz.py TARGET [CORPUS] [OPTIONS].

Needs atheris (the extra `fuzz`). Options after the target are libFuzzer's; a finding is left as crash-* in this folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the targets are those of the tests

SECONDS = 20
"""Per input; longer counts as a hang."""
MOST_MIB = 4096


def main() -> int:
    try:
        import atheris
    except ImportError:
        print("error: atheris is not installed; pip install 'mmbench[fuzz]'", file=sys.stderr)
        return 2
    with atheris.instrument_imports(include=["mmbench", "yaml"]):
        from fuzz_targets import attempt, targets
    known = targets()
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in known:
        print(f"error: no target '{name}'; known: {', '.join(known)}", file=sys.stderr)
        return 2
    target = known[name]
    corpus = Path(sys.argv[2]) if len(sys.argv) > 2 and not sys.argv[2].startswith("-") else Path("corpus") / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    limits = [f"-timeout={SECONDS}", f"-rss_limit_mb={MOST_MIB}"]
    options = [word for word in sys.argv[2:] if word.startswith("-")]
    atheris.Setup([sys.argv[0], *limits, *options, str(corpus)], lambda content: attempt(target, content) and None)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
