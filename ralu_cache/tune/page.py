"""One self-contained HTML page of a study: the front, its plans over the noise level, pictures, what mattered."""

from __future__ import annotations

import base64
import json
import warnings
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment
from optuna import Study
from optuna.importance import get_param_importances
from optuna.trial import FrozenTrial, TrialState

from ralu_cache.profiles.profile import Front
from ralu_cache.tune.bench import Bench
from ralu_cache.tune.figures import front_figure, importance_figure, plans_figure
from ralu_cache.tune.front import Measured
from ralu_cache.tune.search import FEW, failures
from ralu_cache.tune.strips import MOST, save_strip

ENOUGH = 10  # trials, from which on importances are told


def write_page(
    folder: Path, study: Study, bench: Bench, front: Front, trials: Sequence[Measured], name: str, anew: bool = False
) -> Path:
    """Writes index.html and points.json into the study's folder, and the strip of the full run beside the others'.

    anew: whether the front was judged on seeds that the search didn't see.
    """
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        files("ralu_cache.tune").joinpath("page.html.j2").read_text()
    )
    importances = _importances(study)
    page = folder / "index.html"
    folder.mkdir(parents=True, exist_ok=True)
    page.write_text(template.render(
        name=name, anew=anew, front=front, middle=front.points[front.chosen], tried=len(trials),
        given_up=sum(not trial.whole for trial in trials), failures=failures(study),
        front_svg=front_figure(front, trials, anew), plans_svg=plans_figure(front, trials),
        importance_svg=importance_figure(importances) if importances else "",
        strips=_strips(folder / "pictures", bench, front, trials),
        texts=[subject.text for subject in bench.subjects[:MOST]],
    ))  # fmt: skip
    _write_points(folder, front, trials)
    return page


def _write_points(folder: Path, front: Front, trials: Sequence[Measured]) -> None:
    """points.json: the front as `ralu_cache.app.studies` shows it, and where the pictures are that `_strips` shows."""
    numbers = {trial.setting: trial.number for trial in trials}
    points = [
        {
            "told": point.setting.told, "speedup": point.speedup, "loss": point.loss, "low": point.low,
            "high": point.high, "picture": f"pictures/{numbers[point.setting]}.png",
        }
        for point in front.points
    ]  # fmt: skip
    gain = "faster" if front.cost == "seconds" else "fewer FLOPs"
    told = {"measure": front.measure.label, "unit": front.measure.unit, "gain": gain, "full": "pictures/full.png"}
    (folder / "points.json").write_text(json.dumps({**told, "points": points}, indent=1) + "\n")


def _importances(study: Study) -> Mapping[str, Mapping[str, float]]:
    """By parameter, for the loss and for the cost; empty for too few trials, or where all came out alike."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(done) < ENOUGH:
        return {}

    def of(index: int) -> dict[str, float]:
        def value(trial: FrozenTrial) -> float:
            return float(trial.values[index])

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return get_param_importances(study, target=value)

    try:
        return {"loss": of(0), "cost": of(1)}
    except (RuntimeError, ValueError):  # no parameter varied
        return {}


def _strips(folder: Path, bench: Bench, front: Front, trials: Sequence[Measured]) -> list[tuple[str, str]]:
    """(caption, PNG) of the full run and of the points whose pictures were kept."""
    full = folder / "full.png"
    save_strip(full, [bench.reference(chunk).pictures for chunk in bench.chunks(FEW)])
    numbers = {trial.setting: trial.number for trial in trials}
    shown, faster = [("in full", full)], "faster" if front.cost == "seconds" else "fewer FLOPs"
    for point in front.points:
        caption = f"{point.speedup:.3g}x {faster}, loss {point.loss:.3g}: {point.setting.told}"
        shown.append((caption, folder / f"{numbers[point.setting]}.png"))
    return [(caption, base64.b64encode(path.read_bytes()).decode()) for caption, path in shown if path.exists()]
