"""Names of the files of a results folder: what a suite and its trials leave, and where readers look for it."""

from __future__ import annotations

SUITE = "suite.yaml"
"""Beside the trials: the suite as it was run."""
SPEC = "spec.json"
"""In a trial's folder, as the rest: what to run."""
EVENTS = "events.jsonl"
PREDICTIONS = "predictions.parquet"
STATES = "state.safetensors"
STDERR = "stderr.txt"
