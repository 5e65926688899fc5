"""Which shifts, intervals, scales and plans serve each method best, on prompts that no table reports.

    python -m benchmarks.regime.search --model tiny-flux [--prompts 16] [--groups plans guidance]
    python -m benchmarks.regime.search --table

Prompts of the split "train", picture i of seed i. The score is the probability that the classifier gives to what the
prompt states: it is smooth, and tells two settings apart with fewer pictures than counts do. Resumable: a line of JSON
for each setting. Few pictures, so neighbours in a table are not told apart: see the intervals.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.regime.drawing import judged
from benchmarks.regime.measures import OUT
from benchmarks.regime.options import read
from benchmarks.regime.pictures import scene_prompts
from benchmarks.regime.setting import Setting, draw
from benchmarks.regime.settings import FOUND
from ralu_cache import RALU, Guidance
from ralu_cache.quality.intervals import bootstrap
from ralu_cache.report.table import Table

BATCH = 16
STRONG = 6.0
MODELS = ("tiny-flux", "tiny-flux-dev", "tiny-sd3")
JUDGED = ("probability", "attributes", "scenes", "sharpness")


def shifts() -> Iterator[Setting]:
    """Plain steps and stock multistep solvers under strong guidance, by their shift."""
    for solver, steps, values in (
        ("euler", 5, (1.5, 2.0, 2.5, 3.0, 4.0)),
        ("euler", 7, (2.0, 2.5, 3.0)),
        ("unipc", 7, (1.5, 2.5, 3.5, 5.0)),
        ("dpm++2m", 7, (1.5, 2.5, 3.5)),
    ):
        for shift in values:
            yield Setting(f"{steps} steps, {solver}, shift {shift:g}", STRONG, steps, shift, solver)


def intervals() -> Iterator[Setting]:
    """8 plain steps under strong guidance, guided until t."""
    for shift, ends in ((2.0, (0.2, 0.3, 0.4, 0.55)), (2.5, (0.3, 0.4, 0.55))):
        for end in ends:
            name = f"8 steps, shift {shift:g}, guided until {end:g}"
            yield Setting(name, STRONG, 8, shift, guidance=Guidance(end=end))


def scales() -> Iterator[Setting]:
    """Few plain steps and UniPC's, by guidance scale, guided throughout or until t = 0.4."""
    for scale in (2.0, 3.0, 4.5):
        for steps in (4, 3):
            yield Setting(f"{steps} steps at {scale:g}", scale, steps, 2.5)
            yield Setting(f"{steps} steps at {scale:g}, guided until 0.4", scale, steps, 2.5, guidance="early:0.4")
        for steps in (4, 3):
            if scale < 4:
                yield Setting(f"{steps} steps at {scale:g}, unipc", scale, steps, 2.5, "unipc")


def plans() -> Iterator[Setting]:
    """Plans of about 8x, two of three stages, and the late presets by guidance scale."""
    late = {"shifts": (3.3, 1.4), "z": 2.2}
    for steps, ends, guided, levels in (
        ((8, 4), (0.5, 1.0), "all", late),
        ((8, 4), (0.5, 1.0), "early", late),
        ((8, 4), (0.5, 1.0), "all", {"shifts": (3.0, 2.0), "z": 3.0}),
        ((8, 4), (0.6, 1.0), "all", late),
        ((6, 5), (0.4, 1.0), "all", late),
    ):
        name = f"{steps} to {ends[0]:g}, z {levels['z']:g}, shifts {levels['shifts']}, guided {guided}"
        yield Setting(name, STRONG, spatial=RALU(steps=steps, ends=ends, guidance=guided, **levels))
    plan = RALU(steps=(7, 2, 3), ends=(0.45, 0.6, 1.0), shifts=(3.3, 2.0, 1.4), z=2.2, ratio=0.3)
    yield Setting("(7, 2, 3) to 0.45 and 0.6, regions 0.3", STRONG, spatial=plan)
    for scale in (3.0, 4.5, 6.0):
        for preset in ("ralu-15x", "ralu-18x"):
            yield Setting(f"{preset} at {scale:g}", scale, spatial=preset)


def finer() -> Iterator[Setting]:
    """On more prompts: plans of about 8x at the sampler's own shift, with regions and without; plans beyond 20x."""
    for steps, ends, options in (
        ((8, 4), (0.5, 1.0), {}),
        ((8, 4), (0.4, 1.0), {}),
        ((6, 4), (0.3, 1.0), {}),
        ((7, 2, 3), (0.45, 0.6, 1.0), {}),
        ((7, 2, 3), (0.3, 0.5, 1.0), {}),
        ((7, 2, 3), (0.45, 0.6, 1.0), {"shifts": (3.3, 2.0, 1.4), "z": 2.2}),
        ((2, 3, 5), (0.1, 0.2, 1.0), {"ratio": 0.1}),
    ):
        at = " and ".join(f"{end:g}" for end in ends[:-1])
        name = f"{steps} to {at}, {options or 'shifts and z as usual'}"
        yield Setting(name, STRONG, spatial=RALU(steps=steps, ends=ends, **options))
    for scale in (4.5, 5.25, 6.0):
        for steps, end in (((6, 1), 0.77), ((7, 1), 0.77), ((7, 1), 0.72)):
            plan = RALU(steps=steps, ends=(end, 1.0), shifts=(3.3, 1.4), z=2.2, guidance="early")
            yield Setting(f"{steps} to {end:g}, guided early, at {scale:g}", scale, spatial=plan)


def guidance() -> Iterator[Setting]:
    """Guidance left out late, its difference held, stopped by agreement, higher early: in many steps and few."""
    for steps in (50, 28):
        yield Setting(f"{steps} steps", STRONG, steps)
        for name, rule in (
            ("guided until 0.3", Guidance(end=0.3)),
            ("guided until 0.5", Guidance(end=0.5)),
            ("until 0.5, difference held and scaled", Guidance(end=0.5, held="scaled")),
            ("until agreement 0.99", Guidance(agreement=0.99)),
        ):
            yield Setting(f"{steps} steps, {name}", STRONG, steps, guidance=rule)
    yield Setting("8 steps, shift 2.5", STRONG, 8, 2.5)
    for name, rule in (("", None), ("held and scaled", "scaled")):
        for end in (0.3, 0.5):
            text = f"8 steps, shift 2.5, until {end:g} {name}".strip()
            yield Setting(text, STRONG, 8, 2.5, guidance=Guidance(end=end, held=rule))
    for scale in (6.0, 8.0, 10.0):
        yield Setting(f"ralu-15x, scale {scale:g} early", scale, spatial="ralu-15x")
    yield Setting("ralu-15x, difference held and scaled", STRONG, spatial="ralu-15x",
                  guidance=Guidance(end=0.65, held="scaled"))  # fmt: skip


GROUPS = {
    "shifts": shifts, "intervals": intervals, "scales": scales, "plans": plans, "finer": finer, "guidance": guidance,
}  # fmt: skip


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def search(model: str, groups: Sequence[str], count: int, out: Path) -> None:
    """Draws what is missing of the groups, the full run first, which all others are held against."""
    path, prompts = out / f"search_{model}.jsonl", scene_prompts("train", count)
    settings = [Setting("full", STRONG), *(setting for name in groups for setting in GROUPS[name]())]
    if FOUND[model].early is None:  # guidance is distilled: no interval saves a call
        settings = [setting for setting in settings if setting.guidance is None]
    for start in range(0, count, BATCH):
        done = {(row["start"], row["setting"], row["made"]) for row in rows_of(path)}
        chosen = prompts[start : start + BATCH]
        for setting in tqdm(settings, desc=f"{model} from {start}", mininterval=30, disable=None):
            if (start, setting.name, setting.made) in done:
                continue
            drawn = draw(model, setting, chosen, range(start, start + len(chosen)))
            found = {name: np.round(values, 2).tolist() for name, values in judged(drawn.pictures, chosen).items()}
            row = {"start": start, "setting": setting.name, "made": setting.made, "ratio": round(drawn.ratio, 2)}
            with path.open("a") as file:
                file.write(json.dumps(row | {name: found[name] for name in JUDGED}) + "\n")


def table(out: Path) -> str:
    """The Markdown page, model by model and group by group."""
    lines = [
        "# What was searched",
        "",
        "Prompts of the split \"train\", which no table of results reports; guidance 6 unless a line says otherwise.",
        "Chosen by it: `benchmarks/regime/settings.py`, `ralu_cache/presets.py`. The probability's standard error is",
        "about 1.5 points on 16 pictures, 0.6 on 96, so neighbours are not told apart.",
        "Means; in brackets the 95 % bootstrap interval of the paired difference to the full run. Sharpness is the",
        "mean gradient in thousandths. Made by `python -m benchmarks.regime.search`.",
    ]  # fmt: skip
    for model in MODELS:
        rows: dict[str, dict[int, dict[str, Any]]] = {}
        made = {setting.made for group in GROUPS.values() for setting in group()} | {Setting("full", STRONG).made}
        for row in rows_of(out / f"search_{model}.jsonl"):
            if row["made"] in made:
                rows.setdefault(row["setting"], {})[row["start"]] = row
        for name, group in GROUPS.items():
            shown = [setting.name for setting in group() if setting.name in rows]
            if shown:
                lines += ["", f"## {model}: {name}", "", " ".join(str(group.__doc__).split()), ""]
                lines.append(_group(rows, ["full", *shown]))
    return "\n".join(lines) + "\n"


def _group(rows: dict[str, dict[int, dict[str, Any]]], names: Sequence[str]) -> str:
    titles = ("setting", "pictures", "fewer FLOPs", "probability of the stated", "attributes", "scenes", "sharpness")
    cells = []
    for name in names:
        starts = sorted(set(rows[name]) & set(rows["full"]))
        value = {key: np.concatenate([rows[name][start][key] for start in starts]) for key in JUDGED}
        full = np.concatenate([rows["full"][start]["probability"] for start in starts])
        ratio = rows[name][starts[0]]["ratio"]
        difference = bootstrap(value["probability"] - full)
        against = "" if name == "full" else f" ({difference.low:+.1f} to {difference.high:+.1f})"
        cells.append([
            name, str(len(full)), f"{ratio:.1f}x", f"{value['probability'].mean():.1f}{against}",
            f"{value['attributes'].mean():.1f}", f"{value['scenes'].mean():.0f}", f"{value['sharpness'].mean():.1f}",
        ])  # fmt: skip
    return Table(titles, cells).markdown()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default=MODELS[0])
    parser.add_argument("--groups", nargs="+", choices=list(GROUPS), default=list(GROUPS))
    parser.add_argument("--table", action="store_true", help="write the page and draw nothing")
    options = read(parser, arguments, OUT)
    if not options.table:
        search(options.model, options.groups, options.prompts, options.out)
    page = table(options.out)
    (options.out / "search.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
