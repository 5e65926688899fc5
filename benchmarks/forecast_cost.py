"""What forecasts by the scheduler alone cost at FLUX shapes, beside diffusers' own TaylorSeer and SeaCache.

    python -m benchmarks.forecast_cost [--repeats 15] [--out benchmarks/results/forecast_cost]

Per step of the schedule: microseconds beyond what the stock pipeline spends, the best of interleaved runs on one
thread, and the most bytes that are kept. FLUX.1 at 1024x1024: 4096 tokens of 64 channels, 512 of text, 19 blocks of two
streams and 38 of one, 3072 wide, bfloat16. The model itself is left out, so what is measured is the caches' own work:
of forecasts and solvers a whole accelerated loop against the stock loop; of TaylorSeer its state, updated and read as
its hooks do, for one attention times their number; of SeaCache its indicator, its gate and the residual's forecast.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.hooks import sea_cache, taylorseer_cache
from torch import Tensor

from ralu_cache import accelerate
from ralu_cache.report.table import Table
from ralu_cache.report.text import readable_bytes

STEPS, INTERVAL = 28, 3
TOKENS, CHANNELS, TEXT, WIDTH, ATTENTIONS = 4096, 64, 512, 3072, 19 + 38
DTYPE = torch.bfloat16


class Loop(DiffusionPipeline):
    """A pipeline whose model is nothing."""

    def __init__(self, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(scheduler=scheduler)

    @torch.no_grad()
    def __call__(self, latents: Tensor, output: Tensor) -> Tensor:
        self.scheduler.set_timesteps(STEPS)
        for t in self.scheduler.timesteps:
            latents = self.scheduler.step(output, t, latents, return_dict=False)[0]
        return latents


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def outside(repeats: int, **setting: Any) -> tuple[float, int]:
    """(microseconds a step beyond stock, bytes kept) of an accelerated loop."""
    pipe = Loop(FlowMatchEulerDiscreteScheduler(shift=3.0))
    latents, output = torch.randn(2, 1, TOKENS, CHANNELS, dtype=DTYPE).unbind(0)
    stock, found, kept = [], [], 0
    for _ in range(repeats):
        stock.append(seconds(lambda: pipe(latents, output)))
        with accelerate(pipe, **setting) as handle:
            pipe(latents, output)
            found.append(seconds(lambda: pipe(latents, output)))
            assert handle.report is not None
            kept = handle.report.peak_cached_bytes
    return 1e6 * (min(found) - min(stock)) / STEPS, kept


def taylorseer(repeats: int, attentions: int) -> tuple[float, int]:
    """The same of diffusers' TaylorSeer of order 1 on so many attentions, every `INTERVAL`-th step computed."""
    state = taylorseer_cache.TaylorSeerState(taylor_factors_dtype=DTYPE, max_order=1)
    output = torch.randn(1, TOKENS + TEXT, WIDTH, dtype=DTYPE)
    found = []
    for _ in range(repeats):
        state.reset()
        start = time.perf_counter()
        for step in range(STEPS):
            state.current_step += 1
            if step % INTERVAL == 0:
                state.update((output,))
            else:
                state.predict()
        found.append(time.perf_counter() - start)
    held = sum(factor.nbytes for factors in state.taylor_factors.values() for factor in factors.values())
    return attentions * 1e6 * min(found) / STEPS, attentions * held


def seacache(repeats: int) -> tuple[float, int]:
    """The same of diffusers' SeaCache: at every step the indicator and the gate, then a residual's line or its record.

    Its hooks read the step from the pipeline, which FLUX does not tell, so their functions are called here as they do.
    """
    config = sea_cache.SeaCacheConfig(threshold=1e9, max_consecutive_cached=INTERVAL - 1)
    canvas = torch.randn(16, 1, 128, 128, dtype=DTYPE)  # raw latents, (C, T, H, W)
    hidden = torch.randn(1, TOKENS + TEXT, WIDTH, dtype=DTYPE)
    found, history = [], list[Tensor]()
    for _ in range(repeats):
        shared, state, history = sea_cache.SeaCacheSharedState(), sea_cache.SeaCacheContextState(), []
        start = time.perf_counter()
        for step in range(STEPS):
            sigma = 1 - step / STEPS
            metadata = sea_cache._SeaCacheForwardMetadata(step, sigma, STEPS, [canvas])
            indicator = sea_cache._build_indicator(config, metadata)
            computes = shared.resolve_gate(state, metadata, indicator, config)
            state.consecutive_cached = 0 if computes else state.consecutive_cached + 1
            if computes or len(history) < 2:
                history = [*history, (hidden - hidden).clone()][-2:]
            else:
                hidden + history[-1] + (history[-1] - history[-2]) * 0.5
        found.append(time.perf_counter() - start)
    held = sum(residual.nbytes for residual in history)
    return 1e6 * min(found) / STEPS, held + 2 * canvas.nbytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/forecast_cost"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    few = max(1, options.repeats // 5)
    found = {
        f"forecast:{INTERVAL}": outside(options.repeats, temporal=f"forecast:{INTERVAL}"),
        "multistep": outside(options.repeats, solver="multistep"),
        f"forecast:{INTERVAL} + multistep": outside(
            options.repeats, temporal=f"forecast:{INTERVAL}", solver="multistep"
        ),
        "diffusers' TaylorSeer, last block alone": taylorseer(few, 1),
        "diffusers' TaylorSeer": taylorseer(few, ATTENTIONS),
        "diffusers' SeaCache": seacache(few),
    }
    rows = [[name, f"{spent:,.0f}", readable_bytes(held)] for name, (spent, held) in found.items()]
    table = Table(("cache", "µs a step", "kept at most"), rows).markdown()
    print(table)
    options.out.mkdir(parents=True, exist_ok=True)
    figures = {name: {"us_a_step": round(spent, 1), "bytes": held} for name, (spent, held) in found.items()}
    settings = {"steps": STEPS, "interval": INTERVAL, "threads": 1, "dtype": str(DTYPE)}
    (options.out / "cost.json").write_text(json.dumps({**settings, "caches": figures}, indent=2) + "\n")
    (options.out / "cost.md").write_text(f"Written by `python -m benchmarks.forecast_cost`.\n\n{table}\n")


if __name__ == "__main__":
    main()
