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

RECORD_BYTES = 32 * 2**20
"""The most that is read of a file, here and below; whatever others put into a folder comes to an end."""
MARKER_BYTES = 1024
"""Of a claim as well."""
SUITE_BYTES = 2**20
EVENTS_BYTES = 256 * 2**20
PREDICTIONS_BYTES = 16 * 2**30
OUTCOMES_BYTES = 2**30
