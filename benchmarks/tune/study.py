"""What the planner found, on prompts that nothing was chosen on, against hand-made settings and plain steps.

    python -m benchmarks.tune.study --model tiny-flux --profile out/tune/tiny-flux-probability-50/profile.json
    python -m benchmarks.tune.study --model tiny-flux --table

Prompts and seeds are those of `benchmarks.regime.study`, whose rows (the same models, in bfloat16, at guidance 6 and
50 steps) the tuned settings stand beside. Goes on where it stopped: a line of JSON for each batch of 16 pictures and
setting. Writes front_MODEL.md and front_MODEL.png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.regime import study as regime
from benchmarks.regime.measures import MEASURES
from benchmarks.regime.pictures import scene_prompts
from benchmarks.regime.setting import load
from benchmarks.regime.settings import FULL
from benchmarks.tune.search import MODELS, call_of
from ralu_cache import accelerate
from ralu_cache.profiles.profile import Profile, read_profile
from ralu_cache.profiles.setting import Setting
from ralu_cache.quality.intervals import Interval, bootstrap
from ralu_cache.report.table import Table
from ralu_cache.tune.front import Measured, hypervolume

OUT = Path("benchmarks/results/tune")
STEPS = 50
JUDGED = {"probability": 1, "attributes": 1, "scenes": 0, "perceptual": 0, "psnr": 1}
SPEEDS = (3, 4, 6, 8, 10, 12, 15, 20, 25)
WORST = 10.0  # points of probability, of the hypervolume
Row = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """A setting on all pictures: times fewer FLOPs, whose it is, its loss on the prompts that it was chosen on, as a
    mean and at the upper end of its interval (None if it was not tuned), and, by measure, its values of each picture
    and what the full run has more."""

    name: str
    ratio: float
    tuned: bool
    train: float | None
    high: float | None
    values: Mapping[str, np.ndarray]
    lost: Mapping[str, Interval]


def run(model: str, profile: Profile, count: int, path: Path) -> None:
    """Draws and measures what is missing of the full run and the profile's front."""
    done = {(row["start"], row["setting"]) for row in rows_of(path)}
    pipe, prompts = load(model), scene_prompts("study", count)
    (front,) = (front for front in profile.fronts if front.call.steps == STEPS)
    settings: dict[str, tuple[Setting, Row]] = {FULL: (Setting(), {})}
    for point in front.points:
        settings[point.setting.told] = point.setting, {"train": point.loss, "high": point.high}
    path.parent.mkdir(parents=True, exist_ok=True)
    for start in range(0, count, regime.BATCH):
        chosen, whole = prompts[start : start + regime.BATCH], None
        if all((start, name) in done for name in settings):
            continue
        for name, (setting, own) in tqdm(settings.items(), desc=f"{model} from {start}", mininterval=30):
            if (start, name) in done and name != FULL:
                continue
            pictures, ratio = draw(pipe, model, setting, chosen, regime.FIRST_SEED + start)
            whole = pictures if name == FULL else whole
            assert whole is not None  # the full run comes first
            if (start, name) in done:
                continue
            found = {key: MEASURES[key].of(pictures, whole, chosen) for key in JUDGED if key != "psnr"}
            found["psnr"] = np.minimum(MEASURES["psnr"].of(pictures, whole, chosen), 99.0)
            row = {"start": start, "setting": name, "ratio": round(ratio, 3)} | own
            values = {key: np.round(found[key], digits).tolist() for key, digits in JUDGED.items()}
            with path.open("a") as file:
                file.write(json.dumps(row | values, separators=(",", ":")) + "\n")


def draw(pipe: Any, model: str, setting: Setting, prompts: Sequence[str], seed: int) -> tuple[Any, float]:
    """Pictures (B, Y, X, 3), and how many times fewer FLOPs they cost."""
    given = call_of(model, STEPS) | {
        "prompt": list(prompts), "negative_prompt": [""] * len(prompts), "output_type": "np",
        "generator": [torch.Generator().manual_seed(seed + index) for index in range(len(prompts))],
    }  # fmt: skip
    if not setting.arguments:
        return pipe(**given).images, 1.0
    with accelerate(pipe, **setting.arguments) as handle:
        pictures = pipe(**given).images
    assert handle.report is not None
    return pictures, handle.report.flop_ratio


def rows_of(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def lines_of(rows: Sequence[Row], tuned: bool, starts: set[int]) -> list[Line]:
    """Each setting that all batches have, against the full run of the same rows; the full run is left out."""
    by_name: dict[str, dict[int, Row]] = {}
    for row in rows:
        by_name.setdefault(row["setting"], {})[row["start"]] = row
    full, found = by_name[FULL], []
    for name, parts in by_name.items():
        if name == FULL or not starts <= parts.keys():
            continue
        values = {key: joined(parts, key, starts) for key in JUDGED if all(key in parts[start] for start in starts)}
        lost = {
            key: bootstrap(joined(full, key, starts) - each)
            for key, each in values.items() if key not in ("perceptual", "psnr")
        }  # fmt: skip
        first = parts[min(starts)]
        found.append(Line(name, first["ratio"], tuned, first.get("train"), first.get("high"), values, lost))
    return sorted(found, key=lambda line: line.ratio)


def joined(parts: Mapping[int, Row], key: str, starts: set[int]) -> np.ndarray:
    return np.concatenate([parts[start][key] for start in sorted(starts)])


def area(lines: Sequence[Line]) -> float:
    """The hypervolume of their probability lost; of each the value on the reported prompts."""
    return hypervolume(
        [Measured(n, Setting(), (line.lost["probability"].value,), 1 / line.ratio, 1 / line.ratio)
         for n, line in enumerate(lines)],
        WORST,
    )  # fmt: skip


def best_at(lines: Sequence[Line], speed: float, by_train: bool) -> Line | None:
    """The one that is at least so fast and lost least: on its own prompts, as `accelerate` takes it, or (a favour to
    others) on the reported ones."""
    fitting = [line for line in lines if line.ratio >= speed]
    key = (lambda line: line.high) if by_train else (lambda line: line.lost["probability"].value)
    return min(fitting, key=key, default=None)


def table(model: str, tuned: Sequence[Line], others: Sequence[Line], pictures: int) -> str:
    """The Markdown page."""
    titles = ("at least", *("tuned", "lost", "attributes, %"), *("hand-made or peer", "lost", "attributes, %"))
    rows = []
    for speed in SPEEDS:
        cells = [f"{speed}x"]
        for lines, by_train in ((tuned, True), (others, False)):
            line = best_at(lines, speed, by_train)
            cells += ["–", "", ""] if line is None else [
                f"{line.ratio:.1f}x: {line.name}", told(line.lost["probability"]),
                f"{line.values['attributes'].mean():.1f}",
            ]  # fmt: skip
        rows.append(cells)
    page = [
        f"# What `ralu-cache tune` found for {model}, on other prompts", "",
        f"Guidance 6, 50 steps in full, {pictures} prompts and seeds of `benchmarks.regime.study` that nothing was",
        "chosen on, 95 % paired bootstrap intervals. Lost: points of the probability that the scene classifier gives",
        "to what the prompt states, against the full run of the same prompts. Tuned settings are chosen as `speedup=`",
        "does, by what they surely lost on the planner's own prompts; the best of the hand-made ones and peers at each",
        "speed is chosen on the very prompts that are reported, in its favour. [Account](account.md).",
        f"Hypervolume (share of the area above the front, 1 to 32x, below {WORST:g} points): tuned {area(tuned):.3f},",
        f"hand-made and peers {area(others):.3f}, all together {area([*tuned, *others]):.3f}.",
        "Made by `python -m benchmarks.tune.study`.", "",
        Table(titles, rows, left=(1, 2, 4, 5)).markdown(), "", "All settings:", "",
        _every_setting([*tuned, *others]),
    ]  # fmt: skip
    return "\n".join(page) + "\n"


def _every_setting(some: Sequence[Line]) -> str:
    """A row a setting, the slowest first."""
    titles = (
        "fewer FLOPs", "setting", "", "lost on its own prompts", "lost", "attributes lost", "perceptual, ‰", "PSNR, dB",
    )  # fmt: skip
    rows = []
    for line in sorted(some, key=lambda line: line.ratio):
        own = "" if line.train is None else f"{line.train:+.2f}"
        perceptual = f"{line.values['perceptual'].mean():.0f}" if "perceptual" in line.values else ""
        cells = [f"{line.ratio:.1f}x", line.name, "tuned" if line.tuned else "", own]
        cells += [told(line.lost[key]) for key in ("probability", "attributes")]
        rows.append([*cells, perceptual, f"{line.values['psnr'].mean():.1f}"])
    return Table(titles, rows, left=(1, 2, 4, 5)).markdown()


def told(interval: Interval) -> str:
    return f"{interval.value:+.1f} ({interval.low:+.1f} to {interval.high:+.1f})"


def plot(tuned: Sequence[Line], others: Sequence[Line], path: Path) -> None:
    """Probability lost over the speed: on the planner's own prompts, and on the reported ones."""
    from matplotlib.figure import Figure

    from ralu_cache.report.figures import COLOURS, plain, save

    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    own = [line.train for line in tuned]
    lost, by_hand = ([line.lost["probability"].value for line in lines] for lines in (tuned, others))
    for lines, values, style, colour, label in (
        (tuned, own, "--o", COLOURS["mixed"], "tuned, on its own prompts"),
        (tuned, lost, "-o", COLOURS["fine"], "tuned, on other prompts"),
        (others, by_hand, "s", COLOURS["coarse"], "hand-made, plain, peers"),
    ):
        axes.plot([line.ratio for line in lines], values, style, ms=4, lw=1.2, color=colour, label=label)
    for lines, colour in ((tuned, COLOURS["fine"]), (others, COLOURS["coarse"])):
        bounds = [line.lost["probability"] for line in lines]
        low, high = [each.low for each in bounds], [each.high for each in bounds]
        axes.vlines([line.ratio for line in lines], low, high, color=colour, lw=0.8, alpha=0.5)
    axes.set_xscale("log")
    axes.set_xticks(SPEEDS, [f"{speed}×" for speed in SPEEDS])
    axes.minorticks_off()
    axes.set(ylim=(-3, 16), xlabel="times fewer FLOPs than 50 guided steps")
    axes.set_ylabel("probability of the stated lost, points")
    axes.legend(fontsize=8, frameon=False)
    plain(axes)
    save(figure, path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default=MODELS[0])
    parser.add_argument("--profile", type=Path, help="of benchmarks.tune.search")
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--table", action="store_true", help="write the page and the plot, and draw nothing")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    path = options.out / f"front_{options.model}.jsonl"
    if not options.table:
        run(options.model, read_profile(options.profile), options.pictures, path)
    rows = rows_of(path)
    starts = {row["start"] for row in rows if row["setting"] == FULL}
    others = regime.Study(options.model).rows()
    known = regime.latest(others, options.model)["strong"]
    beside = [row for parts in known.values() for row in parts.values()]
    tuned, hand_made = lines_of(rows, True, starts), lines_of(beside, False, starts)
    plot(tuned, hand_made, options.out / f"front_{options.model}.png")
    page = table(options.model, tuned, hand_made, len(starts) * regime.BATCH)
    (options.out / f"front_{options.model}.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
