"""The page of tiny Wan's study: every method beside the full run, ours beside the best of the others at equal cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.evidence.duels import Rival, Way, at_cost, front
from benchmarks.regime.pictures import shrink
from benchmarks.regime.study_page import shown
from benchmarks.tiny_wan.followed import ASPECTS, followed, stated
from benchmarks.tiny_wan.methods import FULL, OURS
from benchmarks.tiny_wan.scenes import MOTIONS, Clip
from benchmarks.tiny_wan.task import LATENT_FRAMES
from ralu_cache.quality.intervals import bootstrap
from ralu_cache.report.figures import save_grid
from ralu_cache.report.table import Table
from ralu_cache.report.videos import still

SHOWN = (
    FULL, "ralu-4x", "ralu-8x", "ralu-12x", "11 plain steps", "6 plain steps", "4 plain steps", "7 steps of UniPC",
)  # fmt: skip
ATTRIBUTES = "attributes"  # as the duels call what decides
INTRODUCTION = """# What tiny Wan's videos keep at what cost

{count} prompts that nothing was chosen on, guidance 5 unless the name says otherwise, by
`python -m benchmarks.tiny_wan.study`; see there. Followed: the mean of what is measured on the pixels, the shape's
colour, the background, the motion ({reach} of rendered clips of these prompts). Motion spectrum: how far the spectrum
over time of what changes between frames lies from the full run's; jitter: mean squared second difference over time,
relative to the full run's. In brackets 95 % bootstrap intervals, of differences paired.

![the first prompts: each row a method, a frame for each latent one](study.png)
"""
DUELS = """
## At equal cost

Ours beside the best of the others, fewer steps of three samplers and caches of diffusers' together, chosen on these
very videos by what is followed, and interpolated in log FLOPs between two neighbours on their front.
"""


def ways(rows: Sequence[Mapping[str, Any]]) -> list[Way]:
    """The methods that have all videos, with the measures of each."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["name"], []).append(row)
    most = max(len(parts) for parts in found.values())
    whole = {name: parts for name, parts in found.items() if len(parts) == most}
    return [_way(name, parts, whole[FULL]) for name, parts in whole.items()]


def _way(name: str, parts: Sequence[Mapping[str, Any]], full: Sequence[Mapping[str, Any]]) -> Way:
    def joined(measure: str, of: Sequence[Mapping[str, Any]] = parts) -> NDArray[np.float64]:
        return np.concatenate([part[measure] for part in of]).astype(float)

    values = {measure: joined(measure) for measure in (*ASPECTS, "psnr", "ssim", "spectrum")}
    values[ATTRIBUTES] = np.mean([values[aspect] for aspect in ASPECTS], 0)
    values["jitter"] = joined("jitter") / joined("jitter", full).mean()
    ratio = float(np.mean([part["ratio"] for part in parts]))
    return Way(name, parts[0]["kind"], parts[0]["scale"], ratio, values)


def table(every: Sequence[Way]) -> str:
    """All methods beside the full run."""
    full = next(way for way in every if way.name == FULL)
    titles = ("method", "fewer FLOPs", "followed, %", "to the full run", *(f"{aspect}, %" for aspect in ASPECTS),
              "PSNR, dB", "SSIM", "motion spectrum, dB", "jitter")  # fmt: skip
    cells = []
    for way in every:
        apart = bootstrap(way.values[ATTRIBUTES] - full.values[ATTRIBUTES])
        like = [f"{way.values[name].mean():.{digits}f}" for name, digits in (("psnr", 1), ("ssim", 3), ("spectrum", 2))]
        cells.append([
            way.name, f"{way.ratio:.1f}x", f"{way.mean:.1f}", "" if way is full else shown(apart, 1, "+"),
            *(f"{way.values[aspect].mean():.0f}" for aspect in ASPECTS), *(("", "", "") if way is full else like),
            f"{way.values['jitter'].mean():.2f}x",
        ])  # fmt: skip
    return Table(titles, cells).markdown()


def duels(every: Sequence[Way]) -> str:
    """Each of ours, the dearest first, beside the best of the others at its cost."""
    theirs = front([way for way in every if way.kind != OURS])
    titles = ("ours", "fewer FLOPs", "the best of the others at this cost", "followed, %", "theirs", "difference",
              "PSNR, dB: difference", "motion spectrum, dB: difference")  # fmt: skip
    cells = []
    for way in sorted((way for way in every if way.kind == OURS), key=lambda way: way.ratio):
        rival = at_cost(theirs, way.ratio)
        cells.append([
            way.name, f"{way.ratio:.1f}x", _told(rival), f"{way.mean:.1f}", f"{rival.mean:.1f}",
            *(shown(bootstrap(way.values[name] - rival.values[name]), digits, "+")
              for name, digits in ((ATTRIBUTES, 1), ("psnr", 1), ("spectrum", 2))),
        ])  # fmt: skip
    return Table(titles, cells, left=(0, 2)).markdown()


def _told(rival: Rival) -> str:
    return f"{rival.told}, their cheapest" if rival.beyond else rival.told


def motions(rows: Sequence[Mapping[str, Any]], chosen: Sequence[Clip]) -> str:
    """Which motions the full run follows."""
    seen = np.concatenate([row["motion"] for row in rows if row["name"] == FULL])
    wanted = [stated(clip)[1] for clip in chosen[: len(seen)]]
    cells = [
        [motion, str(wanted.count(motion)), f"{np.mean(seen[np.array(wanted) == motion]):.0f}"]
        for motion in MOTIONS if motion in wanted
    ]  # fmt: skip
    return "\n## Which motions the full run follows\n\n" + Table(("stated", "videos", "shown, %"), cells).markdown()


def page(rows: Sequence[Mapping[str, Any]], chosen: Sequence[Clip]) -> str:
    """The Markdown page. rows: of one method after the other, by start; chosen: at least the clips of all rows."""
    every = ways(rows)
    count = len(every[0].values[ATTRIBUTES])
    reach = np.mean([[*followed(clip.frames() / 255, clip).values()] for clip in chosen[:count]])
    head = INTRODUCTION.format(count=count, reach=f"{reach:.0f} %")
    return "\n".join([head, table(every), DUELS, duels(every), motions(rows, chosen)]) + "\n"


def save_strip(videos: Mapping[str, NDArray[Any]], prompts: Sequence[str], path: Path) -> None:
    """Film strips of methods' videos (B, F, Y, X, 3): a row a method, a frame for each latent one."""
    save_grid({name: [still(one, LATENT_FRAMES) for one in some] for name, some in videos.items()}, prompts, path)
    shrink(path, (2000, 2000), 128)
