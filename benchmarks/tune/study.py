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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.regime import study as regime
from benchmarks.regime.measures import MEASURES
from benchmarks.regime.pictures import scene_prompts
from benchmarks.regime.search import rows_of
from benchmarks.regime.setting import load
from benchmarks.regime.settings import FOUND, FULL, strong
from benchmarks.tune import study_page
from benchmarks.tune.lines import JUDGED, Row, kind_of, lines_of
from benchmarks.tune.search import MODELS, call_of
from ralu_cache import accelerate
from ralu_cache.profiles.profile import Profile, read_profile
from ralu_cache.profiles.setting import Setting

OUT = Path("benchmarks/results/tune")
STEPS = 50


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
    kinds = {setting.name: kind_of(setting) for setting in strong(options.model, FOUND[options.model])}
    tuned, hand_made = lines_of(rows, {}, starts), lines_of(beside, kinds, starts)
    study_page.plot(tuned, hand_made, options.out / f"front_{options.model}.png")
    page = study_page.table(options.model, tuned, hand_made, len(starts) * regime.BATCH)
    (options.out / f"front_{options.model}.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
