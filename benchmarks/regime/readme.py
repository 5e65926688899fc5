"""The regime's main table, as README.md shows it (`benchmarks.readme_table` puts it there)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.regime.settings import FOUND, FULL
from benchmarks.regime.study import Study
from benchmarks.regime.study_page import Compared, compared, shown
from ralu_cache.report.table import Table

ROWS = (
    ("strong", FULL), ("strong", "8 plain steps, guided"), ("strong", "5 plain steps"),
    ("strong", "7 steps of UniPC"), ("strong", "7 steps of DPM++2M"), ("strong", "ralu-8x"), ("strong", "ralu-12x"),
    ("strong", "ralu-15x"), ("strong", "ralu-18x"), ("best", "4 plain steps"),
    ("best", "ralu-22x"),
)  # fmt: skip
Models = Mapping[str, Mapping[str, Sequence[Compared]]]


def cells(one: Compared) -> list[str]:
    """Of one model: attributes and their difference to the full run, scenes, sharpness, likeness."""
    full = one.name == FULL
    means = [one.values(name).mean() for name in ("attributes", "scenes", "sharpness")]
    lost = "" if full else f": {shown(one.difference('attributes'), 1, '+')}"
    likeness = "" if full else f"{one.values('psnr').mean():.1f} dB"
    return [f"{means[0]:.1f} %{lost}", f"{means[1]:.0f} %", f"{means[2]:.1f}", likeness]


def told(one: Compared) -> str:
    """A setting's name without the interval, which differs from model to model."""
    return one.name.split(" until")[0]


def line(ones: Sequence[Compared | None]) -> list[str]:
    """The row of a setting, of which the models may have different guidance and intervals: the first one's are told.

    None stands for a model that lacks it; one has it.
    """
    there = [one for one in ones if one is not None]
    scales = "/".join(dict.fromkeys(f"{one.parts[one.starts[0]]['scale']:g}" for one in there))
    ratios = "/".join(dict.fromkeys(f"{one.ratio:.3g}x" for one in there))
    faster = "/".join(dict.fromkeys(f"{one.faster():.3g}x" for one in there))
    name = told(there[0])
    label = f"`{name}`" if name.startswith("ralu") else "full run, 50 steps" if name == FULL else name
    each = (["–"] * 4 if one is None else cells(one) for one in ones)
    return [label, scales, ratios, faster, *(cell for some in each for cell in some)]


def table(models: Models) -> str:
    """The Markdown table: a row for each setting that a model has, four columns for each model."""
    titles = ["", "guidance", "fewer FLOPs", "faster"]
    words = [0]
    for model in models:
        words.append(len(titles))
        titles += [f"{model}: attributes, to full (95 %)", "scenes", "mean gradient, ‰", "likeness, PSNR"]
    found = [
        [next((one for one in known[regime] if told(one) == name), None) for known in models.values()]
        for regime, name in ROWS
    ]
    return Table(titles, [line(ones) for ones in found if any(ones)], words).markdown() + "\n"


def main_table(results: Path) -> str:
    """The table from the study's results in a folder; models of which nothing was drawn are left out."""
    studies = {model: Study(model, results) for model in FOUND}
    known = {
        model: {regime: compared(study, regime) for regime in ("strong", "best")} for model, study in studies.items()
    }
    return table({model: regimes for model, regimes in known.items() if regimes["strong"]})
