"""What the step study makes of the metrics, with stand-ins for them."""

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.step_reduction import Value, judge, table
from ralu_cache.quality.base import MetricInfo

INFOS = {"likeness": MetricInfo("PSNR", "dB"), "content": MetricInfo("accuracy", "%"), "set": MetricInfo("distance")}


class Brightness:
    """A metric: each picture's mean, minus that of the reference if it takes one."""

    def __init__(self, name: str, reference: bool) -> None:
        self.name, self.info, self.reference = name, INFOS[name], reference

    def __call__(self, pictures, references, prompts) -> list[float]:
        assert (references is None) is not self.reference
        base = 0 if references is None else references.mean((1, 2, 3))
        return (pictures.mean((1, 2, 3)) - base).tolist()


def test_every_run_is_judged_and_the_full_run_not_by_itself() -> None:
    full = np.zeros((2, 4, 4, 3), np.float32)
    short = full + np.array([1, 3], np.float32)[:, None, None, None]
    metrics = [Brightness("likeness", True), Brightness("content", False)]
    whole = SimpleNamespace(name="set", features=lambda pictures, prompts: pictures[:, 0, 0], value=np.max)
    values = [
        *judge("guided", 50, full, full, ["", ""], metrics, [whole]),
        *judge("guided", 4, short, full, ["", ""], metrics, [whole]),
    ]
    assert values == [
        Value("guided", 50, "content", 0, 0),
        Value("guided", 50, "set", 0),
        Value("guided", 4, "likeness", 2, pytest.approx(1)),
        Value("guided", 4, "content", 2, pytest.approx(1)),
        Value("guided", 4, "set", 3),
    ]
    assert table(values, INFOS).splitlines() == [
        "| guidance | steps | PSNR, dB | accuracy, % | distance |",
        "|---|---:|---:|---:|---:|",
        "| guided | 50 |  | 0.000 ± 0.000 | 0.000 |",
        "| guided | 4 | 2.000 ± 1.000 | 2.000 ± 1.000 | 3.000 |",
    ]
