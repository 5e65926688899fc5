"""The loss curve of a transformer run, from its log."""

import json
from pathlib import Path

from benchmarks.tiny_flux.batches import KINDS


def plot_losses(log: Path, picture: Path, title: str) -> None:
    """Draw the losses in a transformer log, one line a kind of batch, to a PNG. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    entries = json.loads(log.read_text())["log"]
    figure, axes = pyplot.subplots(figsize=(6.5, 3.6), dpi=110)
    for kind in KINDS:
        points = [(entry["step"], entry[kind]) for entry in entries if kind in entry]
        if points:
            axes.plot(*zip(*points, strict=True), label=kind, linewidth=1)
    axes.set(xlabel="step", ylabel="rectified-flow loss", title=title)
    axes.set_yscale("log")
    axes.grid(alpha=0.3, which="both")
    if axes.lines:
        axes.legend()
    figure.tight_layout()
    figure.savefig(picture)
    pyplot.close(figure)
