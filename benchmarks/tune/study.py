"""What the planner found, on prompts that nothing was chosen on, against hand-made settings and plain steps.

    python -m benchmarks.tune.study --model tiny-flux --profile out/tune/tiny-flux-probability-50/profile.json
    python -m benchmarks.tune.study --model tiny-flux --table

Prompts and seeds are those of `benchmarks.regime.study`, whose rows (the same models, in bfloat16, at guidance 6 and
50 steps) the tuned settings stand beside. Goes on where it stopped: a line of JSON for each batch of 16 pictures and
setting. Writes front_MODEL.md and front_MODEL.png (`benchmarks.tune.study_page`).
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
from benchmarks.regime.search import rows_of
from benchmarks.regime.setting import Setting as ByHand
from benchmarks.regime.setting import load
from benchmarks.regime.settings import FOUND, FULL, strong
from benchmarks.tune.search import MODELS, call_of
from ralu_cache import accelerate
from ralu_cache.profiles.profile import Profile, read_profile
from ralu_cache.profiles.setting import Setting
from ralu_cache.quality.intervals import Interval, bootstrap

OUT = Path("benchmarks/results/tune")
STEPS = 50
JUDGED = {"probability": 1, "attributes": 1, "scenes": 0, "perceptual": 0, "psnr": 1}
TUNED, PLANS, REUSE, OTHERS = "tuned", "plans by hand", "our reuse alone", "caches of others"
PLAIN, UNIPC, DPM = "plain steps", "UniPC", "DPM++2M"
KINDS = (TUNED, PLANS, REUSE, PLAIN, UNIPC, DPM, OTHERS)
Row = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """A setting on all pictures: times fewer FLOPs, its kind (one of KINDS), its loss on the prompts that it was chosen
    on, as a mean and at the upper end of its interval (None if it was not tuned), and, by measure, its values of each
    picture and what the full run has more."""

    name: str
    ratio: float
    kind: str
    train: float | None
    high: float | None
    values: Mapping[str, np.ndarray]
    lost: Mapping[str, Interval]


def run(model: str, profile: Profile, count: int, path: Path) -> None:
    """Draws and measures what is missing of the full run and the profile's front; what left the front goes."""
    pipe, prompts = load(model), scene_prompts("study", count)
    (front,) = (front for front in profile.fronts if front.call.steps == STEPS)
    settings: dict[str, tuple[Setting, Row]] = {FULL: (Setting(), {})}
    for point in front.points:
        settings[point.setting.told] = point.setting, {"train": point.loss, "high": point.high}
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [row | settings[row["setting"]][1] for row in rows_of(path) if row["setting"] in settings]
    path.write_text("".join(_line(row) for row in rows))
    done = {(row["start"], row["setting"]) for row in rows}
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
                file.write(_line(row | values))


def _line(row: Row) -> str:
    return json.dumps(row, separators=(",", ":")) + "\n"


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


def kind_of(setting: ByHand) -> str:
    """Whose a setting of the regime's study is, and of which kind."""
    if setting.peer is not None or "reimplemented" in setting.name:
        return OTHERS
    if setting.spatial is not None:
        return PLANS
    if setting.temporal is not None:
        return REUSE
    return {"euler": PLAIN, "unipc": UNIPC, "dpm++2m": DPM}[setting.solver]


def lines_of(rows: Sequence[Row], kinds: Mapping[str, str], starts: set[int]) -> list[Line]:
    """Each setting that all batches have, against the full run of the same rows; the full run is left out.

    kinds: of the settings, by name; others were tuned.
    """
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
        own = first.get("train"), first.get("high")
        found.append(Line(name, first["ratio"], kinds.get(name, TUNED), *own, values, lost))
    return sorted(found, key=lambda line: line.ratio)


def joined(parts: Mapping[int, Row], key: str, starts: set[int]) -> np.ndarray:
    return np.concatenate([parts[start][key] for start in sorted(starts)])


def main(arguments: Sequence[str] | None = None) -> None:
    from benchmarks.tune import study_page

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
    kinds = {setting.name: kind_of(setting) for setting in strong(options.model, FOUND[options.model])}
    tuned, hand_made = lines_of(rows, {}, starts), lines_of(beside, kinds, starts)
    study_page.plot(tuned, hand_made, options.out / f"front_{options.model}.png")
    page = study_page.table(options.model, tuned, hand_made, len(starts) * regime.BATCH)
    (options.out / f"front_{options.model}.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
