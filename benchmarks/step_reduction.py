"""Does the benchmark discriminate? How far plain step reduction falls in each metric on the embedded model.

    python -m benchmarks.step_reduction [--prompts 64] [--steps 50 28 18 12 10 8 6 5 4] [--out DIR]

Every prompt has its own seed, the same for all step counts; likeness is to the run with the most steps. Samples with
and without guidance. Writes steps.json, steps.md, steps.png and, to look at, one strip of samples per guidance.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from benchmarks.lab import GUIDANCE, Lab, strip
from benchmarks.readme_table import shrink
from ralu_cache.quality.base import Metric, MetricInfo, Pictures, SetMetric
from ralu_cache.quality.selection import metrics_for
from ralu_cache.report.table import Table

STEPS = (50, 28, 18, 12, 10, 8, 6, 5, 4)


@dataclass(frozen=True)
class Value:
    """One metric at one step count; error: standard error of the mean over pictures, None for set metrics."""

    guidance: str
    steps: int
    metric: str
    value: float
    error: float | None = None


def judge(
    guidance: str, steps: int, pictures: Pictures, full: Pictures, prompts: Sequence[str],
    metrics: Sequence[Metric], sets: Sequence[SetMetric],
) -> list[Value]:  # fmt: skip
    """All metrics of one run (B, Y, X, 3), B at least 2; likeness of the full run to itself is left out."""
    values = []
    for metric in metrics:
        if not (metric.reference and pictures is full):
            each = metric(pictures, full if metric.reference else None, prompts)
            error = statistics.stdev(each) / len(each) ** 0.5
            values.append(Value(guidance, steps, metric.name, statistics.fmean(each), error))
    for kind in sets:
        values.append(Value(guidance, steps, kind.name, kind.value(kind.features(pictures, prompts))))
    return values


def measure(lab: Lab, steps: Sequence[int], out: Path) -> tuple[list[Value], dict[str, MetricInfo]]:
    """The values of all runs, and how each metric is shown; prints what cannot be measured here."""
    metrics, sets, notices = metrics_for(lab.prompts)
    for notice in notices:
        print(notice)
    values = []
    for guidance in GUIDANCE:
        images: dict[int, Tensor] = {}
        pictures: dict[int, Pictures] = {}
        for count in tqdm(sorted(steps, reverse=True), desc=guidance):
            images[count] = lab.images(count, guidance)
            pictures[count] = images[count].permute(0, 2, 3, 1).numpy()
            full = pictures[max(steps)]
            values += judge(guidance, count, pictures[count], full, lab.prompts, metrics, sets)
        strip({f"{count} steps": shown for count, shown in images.items()}, path := out / f"{guidance}.png")
        shrink(path, path)
    return values, {each.name: each.info for each in metrics} | {each.name: each.info for each in sets}


def table(values: Sequence[Value], infos: dict[str, MetricInfo]) -> str:
    """One Markdown row for each guidance and step count."""
    titles = [f"{info.label}, {info.unit}" if info.unit else info.label for info in infos.values()]
    lines = []
    found = {(value.guidance, value.steps, value.metric): value for value in values}
    for guidance, steps in dict.fromkeys((value.guidance, value.steps) for value in values):
        cells = [_cell(found.get((guidance, steps, name))) for name in infos]
        lines.append([guidance, str(steps), *cells])
    return Table(("guidance", "steps", *titles), lines).markdown() + "\n"


def _cell(value: Value | None) -> str:
    if value is None:
        return ""
    digits = 1 if abs(value.value) >= 10 else 3
    return f"{value.value:.{digits}f}" + ("" if value.error is None else f" ± {value.error:.{digits}f}")


def plot(values: Sequence[Value], infos: dict[str, MetricInfo], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(infos), figsize=(3.6 * len(infos), 3.4), layout="constrained", squeeze=False)
    for axis, (name, info) in zip(axes[0], infos.items(), strict=True):
        for guidance in GUIDANCE:
            mine = [value for value in values if (value.guidance, value.metric) == (guidance, name)]
            errors = [value.error or 0 for value in mine]
            steps, heights = [value.steps for value in mine], [value.value for value in mine]
            axis.errorbar(steps, heights, errors, marker="o", markersize=4, capsize=2, label=guidance)
        ticks = sorted({value.steps for value in values})
        axis.set_xscale("log")
        axis.set_xticks(ticks, [str(tick) for tick in ticks], fontsize=7)
        axis.set_xticks([], minor=True)
        arrow = "higher is better" if info.higher else "lower is better"
        axis.set(xlabel="steps", ylabel=info.unit)
        axis.set_title(f"{info.label} ({arrow})", fontsize=9)
    axes[0][0].legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=64, help="at least 2")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/step_reduction"))
    options = parser.parse_args()
    if options.prompts < 2:
        parser.error(f"--prompts must be at least 2, got {options.prompts}")
    options.out.mkdir(parents=True, exist_ok=True)
    lab = Lab(options.prompts)
    values, infos = measure(lab, options.steps, options.out)
    setting = {"prompts": lab.prompts, "seeds": list(range(len(lab.prompts))), "size": 128}
    shown = {name: asdict(info) for name, info in infos.items()}
    data = {**setting, "metrics": shown, "values": [asdict(value) for value in values]}
    (options.out / "steps.json").write_text(json.dumps(data, indent=1) + "\n")
    head = (
        f"# Plain step reduction on tiny-flux\n\n{len(lab.prompts)} prompts, 128x128 pixels; ±: standard error over "
        f"pictures. PSNR, SSIM and MS-SSIM are to the {max(options.steps)}-step run of the same seeds.\n"
        "Made by `python -m benchmarks.step_reduction`.\n\n"
    )
    (options.out / "steps.md").write_text(head + table(values, infos))
    plot(values, infos, options.out / "steps.png")
    print(table(values, infos))


if __name__ == "__main__":
    main()
