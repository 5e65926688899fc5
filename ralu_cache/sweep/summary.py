"""A sweep's records -> one row for each setting: speed with its spread, cost, quality, failures; and the fronts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ralu_cache.sweep.engine import UNCACHED
from ralu_cache.sweep.methods import parse_method
from ralu_cache.sweep.records import Header, Record, Results, Setting, read_results

Pair = tuple[str, int]  # a prompt and its seed
SetValue = Callable[[NDArray[np.float32]], float]  # features (N, F) of N pictures -> the value of the set
NAN = float("nan")
JACKKNIFE = 8  # groups of pictures, each left out once


@dataclass(frozen=True)
class Quality:
    """A metric's mean over the pictures and its standard error (nan if the pictures are too few to tell).

    values: each picture's, in the order of `Summary.pairs`; of a set metric the jackknife's pseudo-values. Two rows of
    one summary can be compared pair by pair.
    """

    mean: float
    error: float = NAN
    values: tuple[float, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Row:
    """One setting's figures.

    speedup: median of full_seconds / seconds, with its quartiles `low` and `high` over `timings` paired runs; nan if
    it was never timed. pictures: those that quality is measured on. failures: failed records; `error` is the first's.
    comparable: whether `pictures` are all those that are compared.
    """

    setting: Setting
    family: str
    speedup: float
    low: float
    high: float
    timings: int
    flop_ratio: float
    pictures: int
    comparable: bool
    quality: Mapping[str, Quality]
    failures: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Summary:
    """All rows, and the (prompt, seed) pairs that every setting without a failure has."""

    header: Header
    rows: tuple[Row, ...]
    pairs: tuple[Pair, ...]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) in pixels."""
        return list(dict.fromkeys(row.setting.size for row in self.rows))

    def at_size(self, size: tuple[int, int] | None) -> Summary:
        """The rows of one (height, width) alone; None if there is only one.

        Raises ValueError, naming the sizes, for a size that was not measured, and for none where several were.
        """
        measured = ", ".join(f"{width}x{height}" for height, width in self.sizes)
        if size is None and len(self.sizes) > 1:
            raise ValueError(f"the results hold several sizes, choose one with --size: {measured}")
        if size is not None and size not in self.sizes:
            raise ValueError(f"nothing was measured at {size[1]}x{size[0]}; measured: {measured}")
        return replace(self, rows=tuple(row for row in self.rows if size in (None, row.setting.size)))

    @property
    def by_speed(self) -> list[Row]:
        """The rows from slow to fast; those without a time last."""
        return sorted(self.rows, key=lambda row: (math.isnan(row.speedup), row.speedup))

    def judged(self, metric: str) -> list[Row]:
        """The rows that have the metric, by speed; the full run too, save where it would be compared with itself."""
        alike = self.compares_with_full(metric)
        return [row for row in self.by_speed if metric in row.quality and not (alike and row.family == "full")]

    @property
    def main_metric(self) -> str:
        """Attribute accuracy if it was measured, else PSNR, else the first metric. Raises ValueError without any."""
        names = list(self.header.metrics)
        if not names:
            raise ValueError("the results hold no quality metric")
        return next((name for name in names if "attribute" in name), "psnr" if "psnr" in names else names[0])

    def sign(self, metric: str) -> int:
        """1 where more is better, else -1."""
        return 1 if self.header.metrics[metric].higher else -1

    def score(self, row: Row, metric: str) -> float:
        """The metric's mean, negative where less is better: more is better."""
        return self.sign(metric) * row.quality[metric].mean

    def label(self, row: Row) -> str:
        """The setting's name, with what else is needed to tell it from the others."""
        return self._labels[row.setting]

    @cached_property
    def _labels(self) -> dict[Setting, str]:
        several, names = len(self.sizes) > 1, {}
        for setting, full in ((row.setting, row.family == "full") for row in self.rows):
            name = f"full run, {setting.steps} steps" if full else setting.method
            if not full and any(row.setting.method == name and row.setting.steps != setting.steps for row in self.rows):
                name += f", {setting.steps} steps"
            names[setting] = name + (f", {setting.width}x{setting.height}" if several else "")
        return names

    def compares_with_full(self, metric: str) -> bool:
        """Whether it is a likeness to the full run: a sweep measures those to the uncached plan as well."""
        return metric + UNCACHED in self.header.metrics

    @property
    def plotted(self) -> list[str]:
        """The metrics that tell of speed against quality: those measured, without likeness to the uncached plan."""
        names = (name for name in self.header.metrics if not name.endswith(UNCACHED))
        return [name for name in names if any(name in row.quality for row in self.rows)]

    def front(self, metric: str, families: Collection[str] | None = None) -> list[Row]:
        """The rows of each size that no other is both as fast and as good as; by speed.

        families: only rows of these, None for all. See `judged` for when the full run counts.
        """
        best, chosen = [], [row for row in self.judged(metric) if families is None or row.family in families]
        for size in self.sizes:
            rows = [row for row in chosen if row.setting.size == size and row.comparable]
            best += [rows[index] for index in pareto_front([(row.speedup, self.score(row, metric)) for row in rows])]
        return sorted(best, key=lambda row: row.speedup)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (more is better in both) that no other dominates; points with a nan are not among them.

    One point dominates another if it is at least as good in both and better in one.
    """
    known = [index for index, point in enumerate(points) if not any(map(math.isnan, point))]

    def dominated(index: int) -> bool:
        x, y = points[index]
        return any(points[i][0] >= x and points[i][1] >= y and points[i] != (x, y) for i in known)

    return [index for index in known if not dominated(index)]


def family(setting: Setting, full_steps: int) -> str:
    """ "full", "steps" (plain step reduction), "peer" for what is not ours; of ours "spatial", "temporal", "guidance",
    "solver", or "combined" for several of them.
    """
    if setting.method.startswith("steps:"):
        return "steps"
    try:
        method = parse_method(setting.method)
    except ValueError:
        return "peer"
    if method.parts:
        return "combined" if len(method.parts) > 1 else next(iter(method.parts))
    return "full" if setting.steps == full_steps else "steps"


def steps_asked(setting: Setting) -> int:
    """`num_inference_steps` of the call: N for "steps:N", whatever the steps of the run it is compared with."""
    name, _, steps = setting.method.partition(":")
    return int(steps) if name == "steps" else setting.steps


def summarise(results: Results, set_metrics: Mapping[str, SetValue] | None = None) -> Summary:
    """One row for each setting, in the file's order; quality only over the pairs that every sound setting has.

    set_metrics: by name, what turns the features (N, F) of N pictures into the set's value; those without features in
    the results are left out.
    """
    records: dict[Setting, list[Record]] = {setting: [] for setting in results.settings}
    for record in {record.key: record for record in results.records}.values():  # a retried one counts as it went last
        records[record.setting].append(record)
    sound = [_pairs(group) for group in records.values() if all(record.error is None for record in group)]
    shared = [pair for pair in sound[0] if all(pair in other for other in sound[1:])] if sound else []
    header = results.header
    rows = (_row(setting, group, shared, header, set_metrics or {}) for setting, group in records.items())
    return Summary(header, tuple(rows), tuple(shared))


def load_summary(results: Path) -> Summary:
    """The summary of a results file; the Fréchet distance is taken from the features that it holds."""
    loaded = read_results(results)
    kept = {name for record in loaded.records for name in record.features}
    if not kept:
        return summarise(loaded)
    from ralu_cache.quality.frechet import distance_to_renders

    metric = distance_to_renders()
    return summarise(loaded, {metric.name: metric.value} if metric.name in kept else {})


def _pairs(records: Sequence[Record]) -> dict[Pair, tuple[Record, int]]:
    """Where each picture is: its record, and its index in there."""
    return {
        pair: (record, index)
        for record in records
        if record.error is None and (record.metrics or record.features)
        for index, pair in enumerate(zip(record.batch.prompts, record.batch.seeds, strict=True))
    }


def _row(
    setting: Setting, records: Sequence[Record], shared: Sequence[Pair], header: Header, sets: Mapping[str, SetValue]
) -> Row:
    failed = [record for record in records if record.error is not None]
    kind = family(setting, header.full_steps)
    ratios = [record.full_seconds / record.seconds for record in records if record.error is None]
    ratios = [ratio for ratio in ratios if math.isfinite(ratio)]
    if kind == "full":  # by definition; its own timing would show only noise
        ratios = [1.0]
    flops = [record.full_flops / record.flops for record in records if record.flops > 0]
    flops = [ratio for ratio in flops if math.isfinite(ratio)]
    if kind in ("full", "steps"):  # every stock step costs the same
        flops = [header.full_steps / steps_asked(setting)]
    where = _pairs(records)
    places = [where[pair] for pair in shared if pair in where]
    quality = {name: value for name in header.metrics if (value := _quality(name, places, sets)) is not None}
    low, high = np.quantile(ratios, (0.25, 0.75)) if ratios else (NAN, NAN)
    return Row(
        setting, kind, statistics.median(ratios) if ratios else NAN, float(low), float(high), len(ratios),
        statistics.median(flops) if flops else NAN, len(places),
        bool(shared) and len(places) == len(shared), quality, len(failed), failed[0].error if failed else None,
    )  # fmt: skip


def _quality(name: str, places: Sequence[tuple[Record, int]], sets: Mapping[str, SetValue]) -> Quality | None:
    """The metric over these pictures; None where one of them has no finite value."""
    if not places:
        return None
    if name in sets:
        if not all(name in record.features for record, _ in places):
            return None
        features = np.array([record.features[name][index] for record, index in places], dtype=np.float32)
        return _set_quality(sets[name], features)
    values = [record.metrics[name][index] for record, index in places if name in record.metrics]
    if len(values) < len(places) or not all(map(math.isfinite, values)):
        return None
    return Quality(statistics.fmean(values), standard_error(values), tuple(values))


def _set_quality(value: SetValue, features: NDArray[np.float32]) -> Quality | None:
    """(N, F) -> the set's value, and its standard error by the grouped jackknife (Quenouille 1956, Tukey 1958)."""
    whole = value(features)
    if not math.isfinite(whole):
        return None
    groups = min(JACKKNIFE, len(features) // 2)
    if groups < 2:
        return Quality(whole)
    parts = [value(np.delete(features, slice(group, None, groups), axis=0)) for group in range(groups)]
    pseudo = tuple(groups * whole - (groups - 1) * part for part in parts)
    return Quality(whole, standard_error(pseudo), pseudo)


def standard_error(values: Sequence[float]) -> float:
    """Of the mean; nan of fewer than two values."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else NAN
