"""What the library's own code costs the host in each denoiser call, for policies that only count steps.

    python -m benchmarks.host_overhead [--repeats 5] [--out benchmarks/results/host_overhead.json]

Processor time of this thread inside our hooks and our part of the scheduler's step, on a model that is all but nothing,
so that tensors are small and what is left is the host's work. Reused calls also forecast, which is arithmetic.
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
from ralu_cache.engine.blocks import BlockStack
from ralu_cache.engine.root import RootHook
from ralu_cache.engine.run import Run

STEPS = 30
SETTINGS: dict[str, dict[str, Any]] = {
    "taylorseer, all computed": {"temporal": TaylorSeer(1)},
    "taylorseer:3": {"temporal": TaylorSeer(3)},
    "taylorseer:3, order 0": {"temporal": TaylorSeer(3, order=0)},
    "adaptive:2": {"temporal": Adaptive(2)},
    "fine stage alone": {"spatial": RALU(steps=(STEPS,), ends=(1.0,))},
}
PARTS = {RootHook: ("_before", "_after"), BlockStack: ("_enter", "_leave"), Run: ("close_step",)}


def pipeline() -> Any:
    """A FLUX of one block of each kind on 24 tokens."""
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
    """Processor seconds spent in the parts, without what they call the model for."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._stock = {(owner, name): getattr(owner, name) for owner, names in PARTS.items() for name in names}

    def __enter__(self) -> Stopwatch:
        for (owner, name), stock in self._stock.items():
            setattr(owner, name, self._timed(name, stock))
        return self

    def __exit__(self, *_: object) -> None:
        for (owner, name), stock in self._stock.items():
            setattr(owner, name, stock)

    def _timed(self, name: str, stock: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = time.thread_time()
            try:
                return stock(*args, **kwargs)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.thread_time() - begun

        return timed


def measure(options: dict[str, Any], repeats: int) -> dict[str, float]:
    """Microseconds a denoiser call, by part: the least of the repeats, which other work disturbed least."""
    pipe = pipeline()
    given = {
        "prompt_embeds": torch.randn(1, 7, 32), "pooled_prompt_embeds": torch.randn(1, 32), "height": 64, "width": 96,
        "num_inference_steps": STEPS, "output_type": "latent", "generator": torch.Generator().manual_seed(0),
    }  # fmt: skip
    found: list[dict[str, float]] = []
    with Stopwatch() as watch, accelerate(pipe, **options):
        pipe(**given)
        for _ in range(repeats):
            watch.seconds.clear()
            pipe(**given)
            found.append({name: 1e6 * seconds / STEPS for name, seconds in watch.seconds.items()})
    least = {name: min(part.get(name, 0.0) for part in found) for name in found[0]}
    return {name: round(value, 1) for name, value in (least | {"total": sum(least.values())}).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/host_overhead.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {name: measure(setting, options.repeats) for name, setting in SETTINGS.items()}
    for name, parts in found.items():
        print(f"{name:28} {parts.pop('total'):7.1f} us a call   {parts}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    totals = {name: measure(setting, options.repeats) for name, setting in SETTINGS.items()}
    options.out.write_text(json.dumps({"unit": "us a denoiser call", "settings": totals}, indent=2) + "\n")
    print(f"median of the totals: {statistics.median(parts['total'] for parts in totals.values()):.0f} us")


if __name__ == "__main__":
    main()
