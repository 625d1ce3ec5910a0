#!/usr/bin/env bash
# What can only be checked on a GPU: parity with the CPU, the costs of every method at cavmae-base, and a
# short training of the four main ones, also under memory caps. Results go to leaderboards/gpu-<model>/.
set -euo pipefail
cd "$(dirname "$0")/.."

methods=(full-finetune lora-qv adapter-houlsby prompt-the-missing)
python=${PYTHON:-python3}
batch=128

usage() {
  cat <<'TEXT'
usage: scripts/gpu_checks.sh [OUT]

Runs on a machine with a GPU and a python3 that has torch with CUDA; PYTHON=... names another interpreter.
OUT is leaderboards/gpu-<model of the GPU> unless given. It will hold
  environment.txt   driver, torch, packages
  parity.json       CPU against GPU in fp32 without TF32: logits, and digests, features and logits of every corruption
  profile*/         costs of a training step of every method at cavmae-base, batch 128, bf16 and fp32, with the rates of
                    matrix products and copies; of the prompts at batch 38, as in the paper; of compiled blocks; the
                    largest batch within 24, 40, 80 GiB
  costs.md          the paper's efficiency table beside these
  times.txt         seconds at which each part began
  cap-*/            a short training within 2 GiB, where full fine-tuning does not fit, and 24, where it accumulates
  suite.yaml, records/, tables/, plots/, README.md   a short training of each method on synthetic-av
  pretraining/      losses and seconds of two epochs of pre-training a cavmae-base from random weights
  two-devices/      the short training on two GPUs, where there are two
TEXT
}

if [[ "${1:-}" == "--help" || "${1:-}" == "-h" ]]; then usage; exit 0; fi

if ! "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())'; then
  echo "error: $python has no torch that sees a GPU; name another interpreter with PYTHON=" >&2
  exit 2
fi
# The repository itself need not be installed; what it imports must be.
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
missing=$("$python" - <<'PY'
import importlib.util

MODULES = {
    "timm": "timm", "peft": "peft", "loralib": "loralib", "torchaudio": "torchaudio", "torchvision": "torchvision",
    "numpy": "numpy", "scipy": "scipy", "sklearn": "scikit-learn", "pandas": "pandas", "pyarrow": "pyarrow",
    "seaborn": "seaborn", "matplotlib": "matplotlib", "PIL": "pillow", "soundfile": "soundfile",
    "safetensors": "safetensors", "pydantic": "pydantic", "yaml": "pyyaml", "typer": "typer", "rich": "rich",
    "jinja2": "jinja2", "platformdirs": "platformdirs", "pynvml": "nvidia-ml-py",
}
print(" ".join(package for module, package in MODULES.items() if importlib.util.find_spec(module) is None))
PY
)
if [[ -n "$missing" ]]; then
  echo "error: packages are missing: $python -m pip install -c constraints.txt $missing" >&2
  exit 2
fi

model=$("$python" -c 'import torch; print(torch.cuda.get_device_name().lower().replace(" ", "-").replace("/", "-"))')
out=${1:-leaderboards/gpu-$model}
results=runs/gpu-$model
mkdir -p "$out"
mmbench() { "$python" -m mmbench "$@"; }
failed=0

part() { printf '%5d s  %s\n' "$SECONDS" "$1" | tee -a "$out/times.txt" >&2; }
: >"$out/times.txt"

mmbench doctor >"$out/environment.txt" || true  # it also reports what does not matter here
part "parity"
"$python" scripts/gpu_parity.py --samples 2 >"$out/parity.json" \
  || { failed=1; echo "parity: see $out/parity.json" >&2; }

# Every method at the identical batch, then the paper's own setting: prompts on 30 % of each batch of 128.
part "every method, bf16"
mmbench profile all --backbone cavmae-base --batch "$batch" --precision bf16 --device cuda --out "$out/profile" \
  || failed=1
part "prompts on 30 % of the batch"
mmbench profile prompt-the-missing prompt-input prompt-attention --backbone cavmae-base --batch 38 \
  --precision fp32,bf16 --device cuda --out "$out/profile-paper" || failed=1
part "the largest batches"
for cap_gib in 24 40 80; do
  mmbench profile "${methods[@]}" --backbone cavmae-base --batch 8 --steps 1 --precision bf16 --device cuda \
    --memory-cap-gib "$cap_gib" --out "$out/profile-$cap_gib-gib" || failed=1
done
part "short training"

cat >"$out/suite.yaml" <<'YAML'
# A short training of the main methods on a GPU: it shows that they run and what they cost, not which is better.
name: gpu-checks
title: Short training on a GPU
datasets: [{name: synthetic-av, samples: 600}]
backbones: [{name: cavmae-base, epochs: 3, lr: 1.0e-4, batch_size: 32}]
cases: [paper]
regimes: [mixed]
seeds: [0]
methods: [source, full-finetune, lora-qv, adapter-houlsby, prompt-the-missing]
budget: {epochs: 2, batch_size: 128, micro_batch: 32, tuning_trials: 1, precision: bf16}
YAML
mmbench run "$out/suite.yaml" --out "$results" --device cuda || failed=1
mmbench leaderboard "$results" --out "$out" || failed=1
# The same under caps: whole batches, accumulated ones, or "does not fit", but never another effective batch.
for cap_gib in 2 24; do
  part "short training within $cap_gib GiB"
  mmbench run "$out/suite.yaml" --out "$results-$cap_gib-gib" --device cuda --set budget.micro_batch=128 \
    --set budget.eval_batch=8 --set "budget.memory_cap_gib=$cap_gib" \
    --set "methods=[full-finetune, prompt-the-missing]" || true  # what does not fit is a result
  mmbench leaderboard "$results-$cap_gib-gib" --out "$out/cap-$cap_gib-gib" || failed=1
done

# In fp32 a step takes several times as long: fewer of them are timed.
part "every method, fp32"
mmbench profile all --backbone cavmae-base --batch "$batch" --steps 2 --precision fp32 --device cuda \
  --out "$out/profile-fp32" || failed=1
"$python" scripts/gpu_costs.py "$out"/profile "$out"/profile-fp32 "$out"/profile-paper >"$out/costs.md" || failed=1
part "compiled blocks"
mmbench profile full-finetune lora-qv --backbone cavmae-base --batch "$batch" --precision bf16 --compile --device cuda \
  --out "$out/profile-compiled" || failed=1

part "pre-training"
mmbench backbone pretrain synthetic-av --preset cavmae-base --set datasets.0.samples=256 --batch-size 32 --epochs 2 \
  --precision bf16 --device cuda --out "$results-pretraining" || failed=1
mkdir -p "$out/pretraining" "$results-pretraining"
find "$results-pretraining" -maxdepth 1 -type f ! -name "*.safetensors" -exec cp {} "$out/pretraining" \;
if [[ $("$python" -c 'import torch; print(torch.cuda.device_count())') -gt 1 ]]; then
  mmbench run "$out/suite.yaml" --out "$results-two-devices" --device cuda --set budget.devices=2 || failed=1
  mmbench leaderboard "$results-two-devices" --out "$out/two-devices" || failed=1
else
  echo "one GPU here: budget.devices=2 was not tried" >&2
fi
part "end"
echo "results in $out" >&2
exit "$failed"
