"""Whether shortest paths over measured errors of recorded runs rank schedules, resolution among their coordinates.

    python -m benchmarks.tune.paths [--prompts 32] [--recorded 8] [--settings 60]

BudCache and DPCache choose the steps to compute by a shortest path over errors that full runs tell. Here a node is a
(level, resolution) pair, and an edge costs what one Euler step between two nodes errs against recorded runs in full at
that resolution, or what a coarse clean estimate, lifted, differs from the fine one where resolution changes. Asked are:

1. random plans, plain and of two stages: does the cost of their path rank them as their pictures do?
2. the shortest paths of a number of steps, drawn as they are, with levels as free as that: do they draw better than
   plans at their best shift?

tiny-flux at guidance 6, prompts of the split "train". Goes on where it stopped; writes paths.jsonl and paths.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor
from tqdm import tqdm

from benchmarks.regime.drawing import judged
from benchmarks.regime.measures import MEASURES
from benchmarks.regime.pictures import scene_prompts
from benchmarks.regime.search import rows_of
from benchmarks.regime.setting import Setting, arguments, draw, pipeline
from ralu_cache import RALU
from ralu_cache.plane.canvas import pool, replicate
from ralu_cache.plane.schedule import renoised_sigma
from ralu_cache.plane.spatial import Stage
from ralu_cache.quality.intervals import bootstrap
from ralu_cache.report.table import Table

OUT = Path("benchmarks/results/tune")
MODEL, STRONG, BATCH = "tiny-flux", 6.0, 16
GRID = np.linspace(1.0, 0.0, 41)  # levels that a path may stand on
Z = 2.2  # of the transitions, as the late presets have it
PLANS = ((0, 4), (0, 5), (0, 7), (8, 1), (8, 2), (6, 3), (8, 4))  # (coarse, fine) steps of the shortest paths
RIVALS = {  # of each, what a search by hand found: plain steps are at their best shift
    **{(0, steps): RALU(steps=(steps,), ends=(1.0,), shifts=(2.5,)) for steps in (4, 5, 7)},
    **{
        steps: RALU(steps=steps, ends=(end, 1.0), shifts=(3.3, 1.4), z=Z)
        for steps, end in (((8, 1), 0.77), ((8, 2), 0.6), ((6, 3), 0.5), ((8, 4), 0.5))
    },
}


@dataclass(frozen=True)
class Levels(RALU):
    """A plan whose levels are given outright, stage by stage."""

    levels: tuple[tuple[float, ...], ...] = ()

    def stages(self, num_inference_steps: int, model_shift: float) -> tuple[Stage, ...]:
        return tuple(Stage(ratio, sigmas) for ratio, sigmas in zip(self.ratios(), self.levels, strict=True))


@dataclass(frozen=True)
class Recorded:
    """A full run of some prompts at one resolution. sigmas (N + 1,); states (N + 1, B, C, H, W), the last one clean."""

    sigmas: NDArray[np.float64]
    states: Tensor

    def at(self, sigma: float) -> tuple[Tensor, Tensor]:
        """(state, velocity) at a level, the state on the straight line between those of two computed levels."""
        after = int(np.clip(np.searchsorted(-self.sigmas, -sigma), 1, len(self.sigmas) - 1))
        high, low = self.sigmas[after - 1], self.sigmas[after]
        above, below = self.states[after - 1], self.states[after]
        velocity = (above - below) / (high - low)
        if sigma == low and after + 1 < len(self.sigmas):  # what is computed at this very level
            velocity = (below - self.states[after + 1]) / (low - self.sigmas[after + 1])
        return below + (sigma - low) * (above - below) / (high - low), velocity

    def clean(self, sigma: float) -> Tensor:
        state, velocity = self.at(sigma)
        return state - sigma * velocity

    def step_error(self, start: float, end: float) -> float:
        """What one Euler step from level to level errs: the RMS over all elements, the mean over pictures."""
        state, velocity = self.at(start)
        return rms(state + (end - start) * velocity - self.at(end)[0])


def rms(difference: Tensor) -> float:
    return float(difference.square().flatten(1).mean(1).sqrt().mean())


def record(prompts: Sequence[str]) -> tuple[Recorded, Recorded]:
    """The full runs of the prompts from the same noise: on coarse tokens, and on fine ones."""
    pipe = pipeline(MODEL)
    size, generator = arguments(MODEL, Setting("full", STRONG))["height"], torch.Generator()
    channels, side = pipe.transformer.config.in_channels // 4, 2 * (size // (2 * pipe.vae_scale_factor))
    shape = channels, side, side
    noise = torch.stack([torch.randn(shape, generator=generator.manual_seed(n)) for n in range(len(prompts))])
    return _recorded(pipe, prompts, 2 * pool(noise), size // 2), _recorded(pipe, prompts, noise, size)


def _recorded(pipe: Any, prompts: Sequence[str], noise: Tensor, size: int) -> Recorded:
    batch, channels, rows, columns = noise.shape
    packed = pipe._pack_latents(noise, batch, channels, rows, columns)
    states = [packed]

    def keep(pipe: Any, step: int, timestep: Tensor, found: dict[str, Tensor]) -> dict[str, Tensor]:
        states.append(found["latents"])
        return {}

    call = arguments(MODEL, Setting("full", STRONG)) | {"height": size, "width": size, "output_type": "latent"}
    pipe(list(prompts), negative_prompt=[""] * batch, latents=packed, callback_on_step_end=keep, **call)
    canvas = [pipe._unpack_latents(each.float(), size, size, pipe.vae_scale_factor) for each in states]
    return Recorded(pipe.scheduler.sigmas.double().numpy(), torch.stack(canvas))


def path_cost(coarse: Recorded, fine: Recorded, stages: Sequence[Sequence[float]]) -> float:
    """The sum of the errors of a plan's edges; a single stage is fine."""
    runs = (fine,) if len(stages) == 1 else (coarse, fine)
    steps = sum(
        run.step_error(*edge) for run, levels in zip(runs, stages, strict=True) for edge in pairwise(levels)
    )  # fmt: skip
    return steps + (change_error(coarse, fine, stages[0][-1], stages[1][0]) if len(stages) == 2 else 0.0)


def change_error(coarse: Recorded, fine: Recorded, end: float, start: float) -> float:
    """What the lifted clean estimate of a coarse state differs from the fine one, by its share of the new state."""
    return (1 - start) * rms(replicate(coarse.clean(end)) - fine.clean(end))


def shortest(coarse: Recorded, fine: Recorded, counts: tuple[int, int]) -> tuple[tuple[float, ...], ...]:
    """The levels of the cheapest path of so many (coarse, fine) steps from pure noise to none, on the grid.

    Fine steps begin where re-noising by Z leads from where the coarse ones end, at the grid's next level.
    """
    fine_costs = _edges(fine)
    if not counts[0]:
        return (_levels(*_best(fine_costs, counts[1])),)
    reached, before = _best(_edges(coarse), counts[0])
    found = []
    for end in range(1, len(GRID) - 1):
        begin = int(np.argmin(np.abs(GRID - renoised_sigma(float(GRID[end]), Z))))
        if not 0 < begin <= end or not np.isfinite(reached[counts[0], end]):
            continue
        ahead, trail = _best(fine_costs, counts[1], begin)
        cost = reached[counts[0], end] + ahead[counts[1], -1]
        cost += change_error(coarse, fine, float(GRID[end]), float(GRID[begin]))
        found.append((cost, _levels(reached, before, end), _levels(ahead, trail)))
    _, *levels = min(found)
    return tuple(levels)


def _edges(run: Recorded) -> NDArray[np.float64]:
    """(L, L): the error of the step between two levels of the grid; infinite upwards."""
    costs = np.full((len(GRID), len(GRID)), np.inf)
    for high in range(len(GRID)):
        for low in range(high + 1, len(GRID)):
            costs[high, low] = run.step_error(float(GRID[high]), float(GRID[low]))
    return costs


def _best(costs: NDArray[np.float64], steps: int, start: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """By number of steps and level, what it costs to come there from `start`, and from which level one comes."""
    reached, before = np.full((steps + 1, len(GRID)), np.inf), np.zeros((steps + 1, len(GRID)), np.int64)
    reached[0, start] = 0.0
    for count in range(1, steps + 1):
        ways = reached[count - 1][:, None] + costs
        reached[count], before[count] = ways.min(0), ways.argmin(0)
    return reached, before


def _levels(reached: NDArray[np.float64], before: NDArray[np.int64], end: int = len(GRID) - 1) -> tuple[float, ...]:
    found = [end]
    for count in range(len(reached) - 1, 0, -1):
        found.append(int(before[count, found[-1]]))
    return tuple(float(GRID[n]) for n in reversed(found))


def random_plans(count: int) -> Iterator[RALU]:
    """As many plain as of two stages, of 4 to 10 fine steps' cost."""
    rng = np.random.default_rng(2026)
    for number in range(count):
        shifts = tuple(round(float(np.exp(rng.uniform(0, np.log(6)))), 2) for _ in range(2))
        if number % 2:
            yield RALU(steps=(int(rng.integers(4, 11)),), ends=(1.0,), shifts=shifts[:1])
        else:
            steps = int(rng.integers(3, 11)), int(rng.integers(1, 5))
            end, z = round(float(rng.uniform(0.15, 0.85)), 2), round(float(rng.uniform(1.5, 4)), 2)
            yield RALU(steps=steps, ends=(end, 1.0), shifts=shifts, z=z)


def of_levels(levels: tuple[tuple[float, ...], ...]) -> Levels:
    """A plan on these levels; its other parts only have to fit them."""
    steps = tuple(len(stage) - 1 for stage in levels)
    ends = tuple(1 - stage[-1] for stage in levels)
    return Levels(steps=steps, ends=ends, levels=levels)


def settings(recorded: tuple[Recorded, Recorded], count: int) -> Iterator[tuple[str, Setting, float]]:
    """(kind, setting, cost of its path), the full run first."""
    yield "full", Setting("full", STRONG), 0.0
    for plan in random_plans(count):
        levels = [stage.sigmas for stage in plan.stages(50, 3.0)]
        kind = "plain" if len(levels) == 1 else "staged"
        told = f"{plan.steps} ends {plan.ends} shifts {plan.shifts} z {plan.z}"
        yield kind, Setting(told, STRONG, spatial=plan), path_cost(*recorded, levels)
    for counts in PLANS:
        levels = shortest(*recorded, counts)
        told = "; ".join(" ".join(f"{level:g}" for level in stage) for stage in levels)
        plan = of_levels(levels)
        yield "shortest", Setting(f"{counts}: {told}", STRONG, spatial=plan), path_cost(*recorded, levels)
        rival = RIVALS[counts]
        own = [stage.sigmas for stage in rival.stages(50, 3.0)]
        told = f"{counts}: ends {rival.ends}, shifts {rival.shifts}"
        yield "by hand", Setting(told, STRONG, spatial=rival), path_cost(*recorded, own)


def run(count: int, recorded: int, plans: int, path: Path) -> None:
    """Draws what is missing, a line of JSON for each setting."""
    prompts = scene_prompts("train", count)
    runs = record(prompts[:recorded])
    done = {row["setting"] for row in rows_of(path)}
    whole: list[Any] = []
    for kind, setting, cost in tqdm(list(settings(runs, plans)), desc="paths", mininterval=30, disable=None):
        if setting.name in done and kind != "full":
            continue
        parts = [slice(start, start + BATCH) for start in range(0, count, BATCH)]
        drawn = [draw(MODEL, setting, prompts[part], range(count)[part]) for part in parts]
        if kind == "full":
            whole = [each.pictures for each in drawn]
            if setting.name in done:
                continue
        found: dict[str, list[float]] = {"probability": [], "attributes": [], "psnr": []}
        for each, full, part in zip(drawn, whole, parts, strict=True):
            values = judged(each.pictures, prompts[part])
            values["psnr"] = list(np.minimum(MEASURES["psnr"].of(each.pictures, full, prompts[part]), 99.0))
            for name, kept in found.items():
                kept += [round(float(value), 2) for value in values[name]]
        row = {"kind": kind, "setting": setting.name, "cost": round(cost, 4), "ratio": round(drawn[0].ratio, 2)}
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(json.dumps(row | found, separators=(",", ":")) + "\n")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The Markdown page: how far costs rank pictures, and the shortest paths beside plans by hand."""
    (full,) = (row for row in rows if row["kind"] == "full")
    lines = [
        "# Do shortest paths over recorded errors rank schedules?", "",
        f"{MODEL}, guidance 6, {len(full['probability'])} prompts of the split \"train\"; made by "
        "`python -m benchmarks.tune.paths`.", "",
        "Random plans: Spearman's rank correlation of what the pictures lost with what could tell it beforehand.", "",
    ]  # fmt: skip
    cells = []
    for kinds in (("plain",), ("staged",), ("plain", "staged")):
        chosen = [row for row in rows if row["kind"] in kinds]
        lost = [-np.mean(row["probability"]) for row in chosen]
        unlike = [-np.mean(row["psnr"]) for row in chosen]
        tell = {"cost": [row["cost"] for row in chosen], "ratio": [row["ratio"] for row in chosen]}
        cells.append([
            " and ".join(kinds), str(len(chosen)),
            *(f"{spearmanr(tell[name], values).statistic:+.2f}" for values in (lost, unlike) for name in tell),
        ])  # fmt: skip
    titles = ("plans", "number", "drawn: by path", "by fewer FLOPs", "likeness: by path", "by fewer FLOPs")
    lines += [Table(titles, cells).markdown(), "", "Shortest paths as they are, and as many steps by hand:", ""]
    cells = []
    for row in rows:
        if row["kind"] in ("shortest", "by hand"):
            lost = bootstrap(np.subtract(full["probability"], row["probability"]))
            cells.append([
                row["kind"], row["setting"], f"{row['ratio']:.1f}x", f"{row['cost']:.3f}",
                f"{lost.value:+.1f} ({lost.low:+.1f} to {lost.high:+.1f})", f"{np.mean(row['attributes']):.1f}",
                f"{np.mean(row['psnr']):.1f}",
            ])  # fmt: skip
    titles = ("", "steps: levels", "fewer FLOPs", "path", "probability lost", "attributes, %", "PSNR, dB")
    return "\n".join([*lines, Table(titles, cells, left=(0, 1)).markdown()]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--recorded", type=int, default=8, help="prompts whose full runs tell the errors")
    parser.add_argument("--settings", type=int, default=60, help="random plans")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    path = options.out / "paths.jsonl"
    run(options.prompts, options.recorded, options.settings, path)
    page = table(rows_of(path))
    (options.out / "paths.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
