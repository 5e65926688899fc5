"""What must hold on the device, on an embedded model: off is stock, precision, offload, two threads at once.

Every check is a distance that is to be 0, or within a bound that the check names; each kind of policy goes through it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextvars import copy_context
from typing import Any

import torch
from torch import Tensor

from ralu_cache import accelerate
from ralu_cache.models.embedded import TINY_FLUX

KINDS: dict[str, dict[str, Any]] = {
    "stages": {"spatial": "ralu-8x"}, "forecast": {"temporal": "forecast:3"}, "solver": {"solver": "multistep"},
    "residual, counting": {"temporal": "taylorseer:3"}, "residual, signal": {"temporal": "teacache:0.3"},
    "residual, canvas": {"temporal": "seacache:0.3"}, "rows": {"temporal": "adaptive:3,ratio=0.3"},
    "layers": {"temporal": "toca:3"}, "stages and forecast": {"spatial": "ralu-8x", "temporal": "forecast:2"},
}  # fmt: skip
STEPS = 10
HALF = 0.05  # relative distance of bfloat16 latents from float32 ones that a setting may have beyond stock's own


def joints(device: torch.device) -> dict[str, Any]:
    """By check: the distances of all kinds and whether each is as it is to be."""
    rows = [
        {"check": name, "kind": kind, "distance": distance, "good": distance <= bound}
        for name, check in CHECKS.items()
        for kind, (distance, bound) in check(device).items()
    ]
    return {"rows": rows, "skipped": {} if device.type == "cuda" else {"offload": "it takes a GPU"}}


def drawn(pipe: Any, seed: int = 0) -> Tensor:
    """Latents, guided."""
    return pipe(
        "a red circle", negative_prompt="", true_cfg_scale=3.0, max_sequence_length=16, num_inference_steps=STEPS,
        height=64, width=64, generator=torch.Generator().manual_seed(seed), output_type="latent",
    ).images  # fmt: skip


def accelerated(pipe: Any, settings: Mapping[str, Any], seed: int = 0) -> Tensor:
    with accelerate(pipe, **settings):
        return drawn(pipe, seed)


def loaded(device: torch.device, dtype: torch.dtype = torch.float32) -> Any:
    pipe = TINY_FLUX.load(dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def distance(found: Tensor, wanted: Tensor) -> float:
    """Relative; inf where anything is not finite."""
    value = float((found.float() - wanted.float()).norm() / wanted.float().norm())
    return value if value == value else float("inf")


Found = dict[str, tuple[float, float]]


def off_is_stock(device: torch.device) -> Found:
    pipe = loaded(device)
    stock, found = drawn(pipe), {}
    for kind, settings in KINDS.items():
        accelerated(pipe, settings)
        found[kind] = float(not torch.equal(drawn(pipe), stock)), 0.0
    return found


def half_precision(device: torch.device) -> Found:
    """bfloat16 against float32; the bound is stock's own distance and `HALF`."""
    exact, half = loaded(device), loaded(device, torch.bfloat16)
    own = distance(drawn(half), drawn(exact))
    return {
        kind: (distance(accelerated(half, settings), accelerated(exact, settings)), own + HALF)
        for kind, settings in KINDS.items()
        if settings.get("temporal") not in ("teacache:0.3", "seacache:0.3")  # these may decide otherwise
    }


def offloaded(device: torch.device) -> Found:
    """Weights that come and go, of the model as a whole and of each module, against weights that stay."""
    if device.type != "cuda":
        return {}
    found = {}
    for name in ("enable_model_cpu_offload", "enable_sequential_cpu_offload"):
        for kind, settings in KINDS.items():
            here, away = loaded(device), loaded(torch.device("cpu"))
            getattr(away, name)(device=device)
            found[f"{kind}, {name}"] = distance(accelerated(away, settings), accelerated(here, settings)), 1e-3
    return found


def two_threads(device: torch.device) -> Found:
    """Two accelerated pipelines around one transformer, at once; each picture is what it is alone."""
    first = loaded(device)
    second = type(first)(**first.components)
    second.set_progress_bar_config(disable=True)
    found = {}
    for kind, settings in KINDS.items():
        alone = [accelerated(pipe, settings, seed) for seed, pipe in enumerate((first, second))]
        together: dict[int, Tensor] = {}
        lock = threading.Lock()
        for pipe in (first, second):
            _lock_prompts(pipe, lock)

        def work(seed: int, pipe: Any, settings: Mapping[str, Any] = settings, found: Any = together) -> None:
            found[seed] = accelerated(pipe, settings, seed)

        threads = [
            threading.Thread(target=copy_context().run, args=(work, seed, pipe))
            for seed, pipe in enumerate((first, second))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for pipe in (first, second):
            del pipe.encode_prompt
        apart = [distance(together[seed], alone[seed]) if seed in together else float("inf") for seed in range(2)]
        found[kind] = max(apart), 0.0
    return found


def _lock_prompts(pipe: Any, lock: Any) -> None:
    """Tokenizers are not safe in threads."""
    encode = pipe.encode_prompt

    def locked(*args: Any, **kwargs: Any) -> Any:
        with lock:
            return encode(*args, **kwargs)

    pipe.encode_prompt = locked


CHECKS: dict[str, Callable[[torch.device], Found]] = {
    "off is stock, bit for bit": off_is_stock, "bfloat16 against float32": half_precision,
    "offload": offloaded, "two threads, one transformer": two_threads,
}  # fmt: skip
