"""Which LoRAs a model's layers have, and how much each counts, to notice where a callback changes that."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

DENOISERS = ("transformer", "transformer_2", "unet")


def loras(pipe: Any) -> list[Any]:
    """Of all layers of the pipeline's denoisers that have some: equal to an earlier list where nothing was changed.

    Takes no time where there are none: then the model's configuration says so.
    """
    models = (getattr(pipe, name, None) for name in DENOISERS)
    return [found for model in models if getattr(model, "peft_config", None) for found in _layers(model)]


def _layers(model: Any) -> Iterator[tuple[Any, ...]]:
    for layer in model.modules():
        if (scaling := vars(layer).get("scaling")) is not None and hasattr(layer, "active_adapters"):
            yield id(layer), list(layer.active_adapters), layer.disable_adapters, dict(scaling)
