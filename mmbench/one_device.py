"""What one device and several have in common: a key that nobody needs who has one."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field, SerializerFunctionWrapHandler, model_serializer


class OneDevice(BaseModel):
    """A model with a number of devices.

    It is left out of what is written where it is 1, since the key is younger than the first trial ids and records.
    """

    devices: int = Field(default=1, ge=1, le=4096)
    """Of each trial: every one computes its share of a step and of the tests."""

    @model_serializer(mode="wrap")
    def _without_one(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = handler(self)
        return {key: value for key, value in found.items() if (key, value) != ("devices", 1)}
