"""What the library's own code costs the host in each denoiser call, for policies that only count steps.

    python -m benchmarks.host_overhead [--repeats 25] [--out benchmarks/results/host_overhead.json]

Time inside our hooks and our part of the scheduler's step, on a model that is all but nothing, so that tensors are
small and what is left is the host's work: on 24 tokens, and on 1536, where the model's own work between two of our
parts takes long enough to empty the processor's caches of them. Told apart: the arithmetic (the residual taken,
forecast and added, a tensor operation or two each) and the bookkeeping around it, which is the measure. Of every call
the median of the repeats.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch

from ralu_cache import RALU, Adaptive, TaylorSeer, accelerate
from ralu_cache.engine import blocks, branches
from ralu_cache.engine.blocks import BlockStack
from ralu_cache.engine.family import FamilyAcceleration
from ralu_cache.engine.root import RootHook
from ralu_cache.engine.scheduler import _staged_class

STEPS = 30
SETTINGS: dict[str, dict[str, Any]] = {
    "taylorseer, all computed": {"temporal": TaylorSeer(1)},
    "taylorseer:3": {"temporal": TaylorSeer(3)},
    "taylorseer:3, order 0": {"temporal": TaylorSeer(3, order=0)},
    "adaptive:2": {"temporal": Adaptive(2)},
    "fine stage alone": {"spatial": RALU(steps=(STEPS,), ends=(1.0,))},
}
SCHEDULER = diffusers.FlowMatchEulerDiscreteScheduler
PARTS: dict[str, tuple[tuple[Any, str], ...]] = {
    "before the model": ((RootHook, "_before"),),
    "before the blocks": ((BlockStack, "_enter"),),
    "after the blocks": ((BlockStack, "_leave"),),
    "after the model": ((RootHook, "_after"),),
    "scheduler's step": ((_staged_class(SCHEDULER), "step"),),
    "begin and end of the run": tuple((FamilyAcceleration, name) for name in ("new_run", "finish", "_refresh")),
    "arithmetic": ((branches, "extrapolate_uniform"), (blocks, "_sum"), (blocks.StackState, "take")),
    "stock": ((SCHEDULER, "step"),),
}


SIZES = {24: (8, 12), 1536: (64, 96)}  # pixels, by tokens


def pipeline() -> Any:
    """A FLUX of one block of each kind, and an autoencoder that leaves pixels their size."""
    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8), guidance_embeds=False,
    ).eval()  # fmt: skip
    vae = diffusers.AutoencoderKL(latent_channels=4)
    none = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = diffusers.FluxPipeline(scheduler=scheduler, vae=vae, transformer=transformer, **none)
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Stopwatch:
    """Seconds spent in each part, without those in other parts that it called, in the order of the calls."""

    def __init__(self) -> None:
        self.found: list[tuple[str, float]] = []
        self._inner: list[float] = []
        places = [(part, owner, name) for part, group in PARTS.items() for owner, name in group]
        self._stock = [(part, owner, name, vars(owner)[name]) for part, owner, name in places]

    def __enter__(self) -> Stopwatch:
        for part, owner, name, stock in self._stock:
            setattr(owner, name, self._timed(part, stock))
        return self

    def __exit__(self, *_: object) -> None:
        for _part, owner, name, stock in self._stock:
            setattr(owner, name, stock)

    def _timed(self, part: str, stock: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            entered = time.perf_counter()
            self._inner.append(0.0)
            begun = time.perf_counter()
            try:
                return stock(*args, **kwargs)
            finally:
                self.found.append((part, time.perf_counter() - begun - self._inner.pop()))
                if self._inner:  # the time of the watch itself is nobody's
                    self._inner[-1] += time.perf_counter() - entered

        return timed


def measure(options: dict[str, Any], repeats: int, size: tuple[int, int]) -> dict[str, float]:
    """Microseconds a denoiser call, by part, and of all the bookkeeping."""
    pipe = pipeline()
    given = {
        "prompt_embeds": torch.randn(1, 7, 32), "pooled_prompt_embeds": torch.randn(1, 32), "height": size[0],
        "width": size[1], "num_inference_steps": STEPS, "output_type": "latent",
        "generator": torch.Generator().manual_seed(0),
    }  # fmt: skip
    runs: list[list[tuple[str, float]]] = []
    with Stopwatch() as watch, accelerate(pipe, **options):
        pipe(**given)
        for _ in range(repeats):
            watch.found.clear()
            pipe(**given)
            runs.append([*watch.found])
    parts = dict.fromkeys(PARTS, 0.0)
    for place, (part, _) in enumerate(runs[0]):
        parts[part] += 1e6 / STEPS * statistics.median(run[place][1] for run in runs)
    del parts["stock"]
    parts["bookkeeping"] = sum(value for part, value in parts.items() if part != "arithmetic")
    return {part: round(value, 1) for part, value in parts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/host_overhead.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for tokens, size in SIZES.items():
        rows = {name: measure(setting, options.repeats, size) for name, setting in SETTINGS.items()}
        found[f"{tokens} tokens"] = rows
        for name, parts in rows.items():
            told = ", ".join(f"{part} {value:.0f}" for part, value in parts.items() if part != "bookkeeping")
            print(f"{tokens:5} tokens, {name:25} {parts['bookkeeping']:6.0f} us of bookkeeping a call   ({told})")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"unit": "us a denoiser call", "settings": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
