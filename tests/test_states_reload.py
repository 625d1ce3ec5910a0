"""What a trial saves predicts the same in another process, for every method."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmbench import registry
from mmbench.conformance_bed import Bed, Subject
from mmbench.outputs import save_states
from mmbench.train import SINGLE, Fitted, Ledger

CHILD = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from mmbench import registry
from mmbench.conformance_bed import Bed, Subject
from mmbench.outputs import load_states
from mmbench.train import SINGLE

folder = Path(sys.argv[1])
found = {}
for name in registry.methods().names():
    method = Subject(name, Bed(), {}).make(seed=11)  # another seed than the one that was trained
    if (folder / name / "state.safetensors").exists():
        method.load(load_states(folder / name)[SINGLE])
    found[name] = method.predict(Bed().batch()).contiguous()
save_file(found, folder / "found.safetensors")
"""


@pytest.mark.slow
def test_saved_states_predict_the_same_in_a_fresh_process(tmp_path: Path) -> None:
    expected = {}
    for name in registry.methods().names():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # dropout
            method = Subject(name, Bed(), {}).trained()
        (tmp_path / name).mkdir()
        save_states(Fitted({SINGLE: method.state()}, Ledger()), tmp_path / name)
        expected[name] = method.predict(Bed().batch()).contiguous()
    save_file(expected, tmp_path / "expected.safetensors")
    script = tmp_path / "child.py"
    script.write_text(CHILD, encoding="utf-8")
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True, cwd=registry.ROOT)
    found = load_file(tmp_path / "found.safetensors")
    differ = [name for name, logits in expected.items() if not torch.equal(found[name], logits)]
    assert json.dumps(differ) == "[]"
