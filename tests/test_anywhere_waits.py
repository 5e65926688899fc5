"""Forecasts by the scheduler alone make the host wait for the device no more often than the stock loop does."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from ralu_cache import accelerate
from tests.pipelines_any import SAMPLES, Sample, no_adapters  # noqa: F401
from tests.simulated_device import OnDevice, Simulated, Wait, move
from tests.surroundings import one_thread  # noqa: F401

CHOSEN = [sample for sample in SAMPLES if sample.cls in ("AuraFlowPipeline", "LTXPipeline")]


def waits_of(sample: Sample, **setting: Any) -> list[list[Wait]]:
    """What the loop waited for after each of the model's calls, up to the next one or its end."""
    device = Simulated()
    with device:
        pipe = sample.pipeline()
        move(pipe.transformer)
        begun: list[int] = []
        pipe.transformer.register_forward_pre_hook(lambda *_: begun.append(len(device.log.waits)))
        given = {name: OnDevice(value) if isinstance(value, Tensor) else value for name, value in sample.call.items()}
        with accelerate(pipe, **setting):
            pipe(**given, num_inference_steps=9, output_type="latent", generator=torch.Generator().manual_seed(0))
        return [device.log.waits[a:b] for a, b in pairwise([*begun, len(device.log.waits)])]


@pytest.mark.parametrize("sample", CHOSEN, ids=str)
@pytest.mark.parametrize("setting", [{"temporal": "forecast:3"}, {"solver": "multistep"}], ids=str)
def test_a_step_waits_no_more_than_stock(sample: Sample, setting: dict[str, Any]) -> None:
    stock = waits_of(sample)
    most = max(map(len, stock[1:]))
    for number, waits in enumerate(waits_of(sample, **setting)[1:], 1):
        assert len(waits) <= most, f"step {number}: {waits}"
