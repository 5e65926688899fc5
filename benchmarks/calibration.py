"""What TeaCache's coefficients are worth: published for FLUX, none, fitted to the model, and an oracle's.

    python -m benchmarks.calibration [--model tiny-flux] [--model FOLDER ...] [--prompts 16] [--guided]

Fits polynomials of degree 4 and 1 on a few prompts, without stages and on the "ralu-4x" plan, and chooses on the same
prompts, for each choice of coefficients, the thresholds at which it computes about as many steps as the others. Other
prompts and seeds are then drawn with them: likeness to the uncached run of the same plan against FLOPs, and the
decisions judged with hindsight (`benchmarks.hindsight`). The oracle decides by how much the model's
output changes, taken from the uncached run: its decisions are what coefficients try to guess. Guided, there are two:
one decides by the mean over a picture's guidance branches, one for each branch apart. What is reused is the last
residual as it is (order 0). Nothing is timed. Writes calibration.json, calibration.md, calibration.png, the profiles
and their plots into a folder for each model.
"""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.calibration_page import ORACLE, ORACLES, Fitted, Point, save_curves, text
from benchmarks.forced import Forced
from benchmarks.hindsight import changes, judge, oracle, replay, situations, threshold_for
from benchmarks.tiny_flux.scenes import sample_scene
from ralu_cache import Acceleration, Report, TeaCache, accelerate
from ralu_cache.generate import Request, call_arguments, load
from ralu_cache.quality.likeness import EQUAL_DB, psnr, ssim
from ralu_cache.report.notices import silent
from ralu_cache.sweep.comparison import Pictures, describe_hardware
from ralu_cache.temporal import Policy
from ralu_cache.tune.calibration.fit import fit_profile, stage_pairs
from ralu_cache.tune.calibration.plot import save_fits
from ralu_cache.tune.calibration.watch import Trace, watch_runs, watching

PLANS = {"plain": None, "ralu-4x": "ralu-4x"}
SHARES = (0.7, 0.5, 0.35, 0.2, 0.1)  # of the steps that no rule forces, computed
DEGREES = {"calibrated": 4, "calibrated, degree 1": 1}
WITHOUT_STAGES = "calibrated without stages"
PROMPT_SEED, TEST_SEED, FIT_SEED = 2027, 100, 7000  # of the prompts; of the first picture drawn, and fitted on
GUIDANCE = 3.0


@dataclass(frozen=True)
class Bench:
    """A pipeline, and how it is called: `batch` pictures at once, with the seeds from `TEST_SEED` or `FIT_SEED` on."""

    model: str
    pipe: Any
    guided: bool
    size: int
    steps: int
    sequence: int | None
    testing: tuple[str, ...]
    fitting: tuple[str, ...]
    batch: int = 8

    def calls(self, fit: bool = False) -> Iterator[dict[str, Any]]:
        """The arguments of each call, with fresh generators."""
        prompts, seed = (self.fitting, FIT_SEED) if fit else (self.testing, TEST_SEED)
        true = "true_cfg_scale" in inspect.signature(self.pipe.__call__).parameters
        guidance: dict[str, Any] = {"true_cfg_scale" if true else "guidance_scale": GUIDANCE if self.guided else 1.0}
        for start in range(0, len(prompts), self.batch):
            request = Request(
                model=self.model, prompt=list(prompts[start : start + self.batch]), negative_prompt="",
                seed=seed + start, height=self.size, width=self.size, steps=self.steps,
                max_sequence_length=self.sequence, **guidance,
            )  # fmt: skip
            yield call_arguments(request, self.pipe)

    def draw(self, handle: Acceleration) -> tuple[Pictures, list[Report]]:
        """The test's pictures (P, Y, X, 3) in [0, 1], and the report of each call."""
        pictures, reports = [], []
        for call in self.calls():
            pictures.append(self.pipe(**call, output_type="np").images)
            assert handle.report is not None
            reports.append(handle.report)
        return np.concatenate(pictures), reports


@dataclass(frozen=True)
class Uncached:
    """The uncached runs of a plan: those that were fitted on, and those of the test with their pictures.

    sizes: of the branches that the test's traces come from, in order.
    """

    fitted: Sequence[Trace]
    traces: Sequence[Trace]
    sizes: tuple[int, ...]
    pictures: Pictures
    flops: float


def measure(bench: Bench, out: Path) -> tuple[list[Point], dict[str, Fitted]]:
    """Every choice of coefficients at every budget on every plan, and what was fitted there; writes the profiles."""
    points: list[Point] = []
    fits: dict[str, Fitted] = {}
    for plan, spatial in PLANS.items():
        fitted, report = watch_runs(bench.pipe, bench.calls(fit=True), spatial)
        chosen = {"published": "flux", "identity": "identity"}
        pairs = stage_pairs(fitted)
        for name, degree in DEGREES.items():
            profile = fit_profile(pairs, report, next(bench.calls(fit=True)), degree, Path(bench.model).name)
            chosen[name] = str(out / f"{plan}-degree-{degree}.json")
            profile.save(chosen[name])
            fits.setdefault(plan, Fitted(profile, explained_by_step(fitted)))
        save_fits(fits[plan].profile, pairs, out / f"{plan}-fit.png")
        if spatial is not None:
            chosen[WITHOUT_STAGES] = str(out / f"plain-degree-{DEGREES['calibrated']}.json")
        with watching(bench.pipe, spatial) as (watch, handle):
            pictures, reports = bench.draw(handle)
            branches = [branch.traces() for branch in watch.branches]
        uncached = Uncached(
            fitted, [trace for branch in branches for trace in branch], tuple(map(len, branches)), pictures,
            sum(report.flops for report in reports),
        )  # fmt: skip
        total = len(SHARES) * (len(chosen) + 1 + bench.guided)
        points += tqdm(_plan(bench, plan, chosen, uncached), desc=plan, total=total)
    return points, fits


def explained_by_step(traces: Sequence[Trace]) -> list[tuple[float, float]]:
    """For each stage, the shares of the variance of the signal's and of the output's changes that the step explains.

    1 where all pictures change alike at every step: then a decision by these changes is a schedule, the same for all.
    """
    stages = torch.tensor([place.stage for place in situations(traces)])

    def share(kind: str, stage: int) -> float:
        found = changes(traces, kind)[:, stages == stage][:, 1:]  # a stage's first step has no change
        return float(1 - (found - found.mean(0)).var() / found.var())

    return [(share("signal", stage), share("output", stage)) for stage in range(int(stages[-1]) + 1)]


def _plan(bench: Bench, plan: str, chosen: Mapping[str, str], uncached: Uncached) -> Iterator[Point]:
    places, signal, output = situations(uncached.fitted), *(changes(uncached.fitted, k) for k in ("signal", "output"))
    forced = sum(TeaCache().forced(place) for place in places)
    for share in SHARES:
        budget = len(signal) * (forced + share * (len(places) - forced))
        for name, coefficients in chosen.items():
            threshold = threshold_for(TeaCache(0.0, coefficients), places, signal, budget)
            policy = TeaCache(threshold, coefficients, order=0)
            yield _point(bench, plan, name, policy, policy, uncached)
        for name in ORACLES[: 1 + bench.guided]:
            known, truth = output, changes(uncached.traces, "output")
            if name == ORACLE:
                known = together(known, len(bench.fitting), bench.batch)
                truth = together(truth, len(bench.testing), bench.batch)
            rule = TeaCache(threshold_for(oracle(TeaCache()), places, known, budget), "identity", order=0)
            scripts = [rows.T for rows in replay(rule, places, truth).split(uncached.sizes)]
            yield _point(bench, plan, name, rule, Forced(rule, *scripts), uncached)


def together(changes: Tensor, pictures: int, batch: int) -> Tensor:
    """(P, steps): each trace gets the mean over its picture's branches; ordered by call of `batch`, branch, picture."""
    branches = len(changes) // pictures
    calls = (call.unflatten(0, (branches, -1)).mean(0) for call in changes.split(branches * batch))
    return torch.cat([call.repeat(branches, 1) for call in calls])


def _point(bench: Bench, plan: str, name: str, rule: TeaCache, policy: Policy, uncached: Uncached) -> Point:
    """rule: the one whose decisions are judged; policy: what runs."""
    with accelerate(bench.pipe, PLANS[plan], policy) as handle:
        pictures, reports = bench.draw(handle)
    reused, places = _reused(reports), situations(uncached.traces)
    expected = replay(rule, places, changes(uncached.traces, "signal"))
    return Point(
        plan=plan,
        coefficients=name,
        threshold=rule.threshold_at(places[0]),
        steps=reused.shape[1],
        computed=float((~reused).float().sum(1).mean()),
        flop_ratio=uncached.flops / sum(report.flops for report in reports),
        psnr=tuple(min(value, EQUAL_DB) for value in psnr(pictures, uncached.pictures)),
        ssim=tuple(ssim(pictures, uncached.pictures)),
        judgement=None if name in ORACLES else judge(rule, uncached.traces),
        alike=None if name in ORACLES else float((expected == reused).float().mean()),
    )


def _reused(reports: Sequence[Report]) -> Tensor:
    """(P, steps) bool: what was reused, in the order of the traces: by call, branch, sample."""
    calls = []
    for report in reports:
        for branch in range(len(report.steps[0].branches)):
            calls.append(torch.tensor([step.branches[branch].reused for step in report.steps]).T)
    return torch.cat(calls)


@silent()
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", metavar="ID_OR_FOLDER", help="may be repeated (tiny-flux)")
    parser.add_argument("--prompts", type=int, default=16, help="that are drawn; default: %(default)s")
    parser.add_argument("--fit-prompts", type=int, default=6, help="that are fitted on; default: %(default)s")
    parser.add_argument("--guided", action="store_true", help=f"with classifier-free guidance of {GUIDANCE:g}")
    parser.add_argument("--size", type=int, default=128, help="pixels of a side; default: %(default)s")
    parser.add_argument("--steps", type=int, default=28, help="of the plain plan; default: %(default)s")
    parser.add_argument("--max-sequence-length", type=int, help="of the prompt; default: the pipeline's")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/calibration"))
    options = parser.parse_args(arguments)
    for model in options.model or ["tiny-flux"]:
        rng, name = np.random.default_rng(PROMPT_SEED), Path(model).name
        prompts = tuple(sample_scene(rng).prompt for _ in range(options.prompts + options.fit_prompts))
        pipe = load(Request(model=model, prompt=["-"]))
        pipe.set_progress_bar_config(disable=True)
        bench = Bench(
            model, pipe, options.guided, options.size, options.steps, options.max_sequence_length,
            prompts[: options.prompts], prompts[options.prompts :],
        )  # fmt: skip
        folder = options.out / (f"{name}-guided" if options.guided else name)
        points, fits = measure(bench, folder)
        setting = {
            "model": name, "guided": options.guided, "size": options.size, "plain_steps": options.steps,
            "prompts": bench.testing, "first_seed": TEST_SEED, "fit_prompts": bench.fitting,
            "first_fit_seed": FIT_SEED, "hardware": describe_hardware(str(pipe.device)),
        }  # fmt: skip
        shares = {plan: fitted.by_step for plan, fitted in fits.items()}
        data = {**setting, "explained_by_step": shares, "points": [asdict(point) for point in points]}
        (folder / "calibration.json").write_text(json.dumps(data, indent=1) + "\n")
        page = text(setting, points, fits)
        (folder / "calibration.md").write_text(page)
        save_curves(points, folder / "calibration.png")
        print(page)


if __name__ == "__main__":
    main()
