#!/usr/bin/env bash
# The comparison of Prompt the Missing on its two data sets, once the files that
# leaderboards/prompt-the-missing/README.md names are in place. Resumes; further arguments go to `mmbench run`.
set -euo pipefail
cd "$(dirname "$0")/.."
board=leaderboards/prompt-the-missing

if [[ "${1:-}" == "--help" || "${1:-}" == "-h" ]]; then
  echo "usage: scripts/reproduce_paper.sh [options of mmbench run]"
  echo "Runs both suites of $board; needs a GPU and the files that $board/README.md names."
  exit 0
fi
for needed in data/audio_model.21.pth data/UrbanSound8K-AV data/CIFAR10-AV; do
  if [[ ! -e "$board/$needed" ]]; then
    echo "error: no $board/$needed; see $board/README.md for where to get it" >&2
    exit 2
  fi
done
failed=0
for suite in urbansound8k-av cifar10-av; do
  mmbench run "$board/$suite.yaml" --out "runs/$suite" "$@" || failed=$?
  if (( failed != 0 && failed != 1 )); then exit "$failed"; fi  # 1: some trials failed; the board shows them
  mmbench leaderboard "runs/$suite" --out "$board/$suite"
done
exit "$failed"
