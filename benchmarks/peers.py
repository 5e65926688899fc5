"""Every way to make an embedded model faster, side by side in one run: ours, and the peers through their own APIs.

    python -m benchmarks.peers [--prompts 64] [--seeds 0 1] [--seconds 3000] [--out benchmarks/results/peers]
    python -m benchmarks.peers --model tiny-sd3 --out benchmarks/results/peers_sd3

A sweep (`ralu_cache.sweep`): the same prompts and seeds for all, likeness to the 50-step full run, attribute accuracy
and Fréchet distance, wall-clock in pairs with the full run on the first batches. Resumable: the same command goes on.
Peers: fewer plain steps; diffusers' FirstBlockCache, MagCache (ratios calibrated here, by its own mode) and TaylorSeer;
cache-dit's DBCache, without and with its TaylorSeer; RALU with the published code's choices; TeaCache's published
thresholds. TeaCache here decides for each picture, the published code for the batch.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import peer_caches
from benchmarks.tiny_flux.scenes import sample_scene
from ralu_cache import RALU, accelerate, register_spatial
from ralu_cache.generate import Request
from ralu_cache.models.embedded import EMBEDDED, TINY_FLUX, TINY_SD3
from ralu_cache.quality.selection import metrics_for
from ralu_cache.sweep.command import MakeBench, header_of
from ralu_cache.sweep.contenders import Prepared, register_contender
from ralu_cache.sweep.executors import run_here, run_on_ray
from ralu_cache.sweep.grid import Grid
from ralu_cache.sweep.outputs import write_outputs
from ralu_cache.sweep.pictures import PictureFolder
from ralu_cache.sweep.records import Setting
from ralu_cache.sweep.runner import run_sweep

PLAIN = (18, 11, 7, 5, 4, 3, 2)
FREE = "first=1,compute_stage_end=false"
FLUX_METHODS = (
    "fbcache:0.3", "fbcache:0.6", "magcache:0.5", "diffusers-taylorseer:5", "diffusers-taylorseer:8", "dbcache:0.3",
    "dbcache-taylorseer:0.3", "dbcache-taylorseer:0.6", "ralu-published:4x",
    "+teacache:0.4", "+teacache:0.4,order=0", "+teacache:0.8", "+teacache:0.8,order=0",
    "+seacache:0.3", "+seacache:0.6", "+taylorseer:5", "+taylorseer:8", "+toca:4",
    "ralu-4x", "ralu-7x", "ralu-2-2-3", "ralu-1-1-2", f"ralu-4x+taylorseer:5/2/2,{FREE}",
    f"ralu-7x+taylorseer:2/3/2,{FREE}", "ralu-7x+adaptive:2", "ralu-7x+adaptive:4", "ralu-7x+adaptive:4,ramp=false",
    "ralu-7x+adaptive:9,ramp=false",
)  # fmt: skip
SD3_METHODS = (  # diffusers' own caches need a `CacheMixin`, which its SD3 transformer has not; cache-dit is untried
    "+teacache:0.4", "+seacache:0.3", "+seacache:0.6", "+taylorseer:5", "+toca:4", "ralu-2x", "ralu-3x", "ralu-7x",
    "ralu-1-1-2", f"ralu-2x+taylorseer:5/2/2,{FREE}", f"ralu-3x+taylorseer:3/2/2,{FREE}", "ralu-2x+adaptive:2",
)  # fmt: skip
METHODS = {TINY_FLUX.name: FLUX_METHODS, TINY_SD3.name: SD3_METHODS}
SMALL_PLANS = ("2-2-3", "1-1-2")  # of RALU: steps by stage, to go as far without caching as others go with it
MORE_STEPS_MORE_REUSE = {"+taylorseer:3,first=1,last=0": (31, 20, 14, 11, 6), "+taylorseer:2,first=1,last=0": (8, 4)}
"""Caching alone on fewer steps than the full run has: the policy, and the steps asked for."""


class Peers:
    """The contenders of others; MagCache's ratios are calibrated once for each number of steps.

    cache-dit gets a pipeline of its own: after it was disabled, diffusers' block caches fail on the same one.
    """

    def __init__(self, call: dict[str, Any], guided: bool) -> None:
        self.call, self.guided = call, guided
        self._ratios: dict[int, list[float]] = {}
        self._copies: dict[int, Any] = {}

    def register(self) -> None:
        for name in ("fbcache", "magcache", "diffusers-taylorseer"):
            register_contender(name, lambda pipe, setting, value, name=name: self._cached(name, pipe, setting, value))
        for name in ("dbcache", "dbcache-taylorseer"):
            register_contender(name, lambda pipe, setting, value, name=name: self._dbcache(name, pipe, setting, value))
        register_contender("ralu-published", self._published)

    @contextmanager
    def _cached(self, name: str, pipe: Any, setting: Setting, value: str) -> Iterator[Prepared]:
        with self._context(name, pipe, setting, value):
            yield Prepared(setting.steps)

    def _context(self, name: str, pipe: Any, setting: Setting, value: str) -> AbstractContextManager[None]:
        if name == "fbcache":
            return peer_caches.first_block_cache(pipe, float(value))
        if name == "magcache":
            return peer_caches.mag_cache(pipe, float(value), setting.steps, self._calibrated(pipe, setting))
        assert name == "diffusers-taylorseer"
        return peer_caches.taylorseer(pipe, int(value), lite=True)

    @contextmanager
    def _dbcache(self, name: str, pipe: Any, setting: Setting, value: str) -> Iterator[Prepared]:
        if id(pipe) not in self._copies:
            self._copies[id(pipe)] = copy.deepcopy(pipe)
        own = self._copies[id(pipe)]
        with peer_caches.dbcache(own, float(value), setting.steps, self.guided, forecast=name != "dbcache"):
            yield Prepared(setting.steps, pipe=own)

    def _calibrated(self, pipe: Any, setting: Setting) -> list[float]:
        if setting.steps not in self._ratios:
            call = {**self.call, "height": setting.height, "width": setting.width}
            self._ratios[setting.steps] = peer_caches.calibrate_mag_cache(pipe, setting.steps, **call)
        return self._ratios[setting.steps]

    @contextmanager
    def _published(self, pipe: Any, setting: Setting, value: str) -> Iterator[Prepared]:
        with accelerate(pipe, spatial=RALU.paper(f"ralu-{value}")) as handle:
            yield Prepared(setting.steps, lambda: handle.report)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--workers", type=int, help="of Ray, which gets the contenders too; by default all runs here")
    parser.add_argument("--model", choices=METHODS, default=TINY_FLUX.name)
    parser.add_argument("--guidance", type=float, default=1.0, help="3.0 draws better and takes twice as long")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/peers"))
    options = parser.parse_args()
    rng = np.random.default_rng(2026)
    prompts = tuple(sample_scene(rng).prompt for _ in range(options.prompts))
    scale = next(name for name in EMBEDDED[options.model].arguments if name.endswith("_scale"))
    guidance = {scale: options.guidance}
    calibration = {"prompt": list(prompts[:4]), "max_sequence_length": 16, **guidance}
    if options.guidance > 1:
        calibration["negative_prompt"] = [""] * 4
    Peers(calibration, options.guidance > 1).register()
    for plan in SMALL_PLANS:
        steps = tuple(int(count) for count in plan.split("-"))
        register_spatial(f"ralu-{plan}", lambda steps=steps: RALU(steps=steps))
    grid = Grid(
        methods=METHODS[options.model], plain_steps=PLAIN, prompts=prompts, seeds=tuple(options.seeds),
        batch=options.batch,
    )  # fmt: skip
    settings = grid.settings()
    for method, counts in MORE_STEPS_MORE_REUSE.items():
        settings += [Setting(method, steps, *grid.sizes[0]) for steps in counts]
    metrics, set_metrics, _ = metrics_for(prompts)
    request = Request(model=options.model, prompt=[prompts[0]], **guidance)
    make = MakeBench(request, max(grid.steps), prompts)
    path = run_sweep(
        options.out, header_of(grid, request, metrics, set_metrics), settings, grid.batches(),
        run_on_ray(make, options.workers) if options.workers else run_here(make), rounds=options.rounds,
        seconds=options.seconds, keep=PictureFolder(options.out, grid.batches()),
    )  # fmt: skip
    write_outputs(path, options.out)


if __name__ == "__main__":
    main()
