"""`profile` measures every method that trains, and refuses what it cannot measure."""

from __future__ import annotations

import pytest
import torch

from mmbench import registry
from mmbench.errors import ConfigError
from mmbench.profiling import ProfileRequest, profile_method

CPU = torch.device("cpu")
TRAINED = [name for name in registry.methods().names() if registry.methods().card(name).trains]


@pytest.mark.parametrize("name", TRAINED)
def test_every_method_that_trains_has_its_costs(name: str) -> None:
    costs = profile_method(ProfileRequest(name, batch=2, steps=1), CPU)
    assert 0 < costs.trainable_parameters <= costs.total_parameters
    assert costs.activations_bytes > 0
    assert costs.train_flops_per_sample > costs.eval_flops_per_sample > 0
    assert costs.predict_seconds_per_sample > 0


def test_a_method_without_training_is_refused() -> None:
    with pytest.raises(ConfigError, match="source does not train"):
        profile_method(ProfileRequest("source"), CPU)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match="fp8"):
        profile_method(ProfileRequest("lora-qv", precision="fp8"), CPU)
