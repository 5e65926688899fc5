"""The study of methods on tiny Wan: its figures, and a run of it."""

import numpy as np
import pytest

from benchmarks.tiny_wan.methods import (
    METHODS,
    Lab,
    Row,
    compare,
    measure,
    motion_spectrum,
    ralu,
    spectrum_distance,
    table,
)
from ralu_cache import RALU
from ralu_cache.models.embedded import TINY_WAN


def test_the_plan_varied_is_the_preset() -> None:
    assert ralu() == RALU.preset("ralu-4x")
    assert {spatial for spatial, _ in METHODS.values()} >= {"ralu-4x", None}


def test_what_flickers_has_more_jitter() -> None:
    ramp = np.linspace(0, 0.5, 5)[:, None, None, None] ** 2 + np.zeros((2, 5, 16, 16, 3), np.float32)
    flicker = ramp + 0.01 + 0.1 * (np.arange(5) % 2)[:, None, None, None].astype(np.float32)
    row = compare("flicker", 50, 1.0, flicker, ramp)
    assert row.jitter > 10 and compare("same", 50, 1.0, ramp + 0.1, ramp).jitter == pytest.approx(1)
    assert compare("same", 50, 1.0, ramp + 0.1, ramp).psnr == pytest.approx(20, abs=0.01)


def test_a_spectrum_over_time_sees_the_pace_of_what_moves_and_not_where_it_is() -> None:
    rng = np.random.default_rng(0)
    still = rng.random((1, 16, 16, 3))
    slow, fast = (np.stack([np.roll(still[0], step * speed, 1) for step in range(9)]) for speed in (1, 4))
    assert spectrum_distance(slow, slow) == 0
    assert spectrum_distance(np.roll(slow, 5, 2), slow) == pytest.approx(0, abs=1e-9), "elsewhere, as fast"
    assert spectrum_distance(np.repeat(still, 9, 0), slow) > 10 and spectrum_distance(fast, slow) > 1
    flicker = 0.1 * (np.arange(9) % 2)[:, None, None, None] + np.zeros((9, 4, 4, 3))
    power = motion_spectrum(flicker)
    assert power.argmax() == len(power) - 1 == 4, "there and back is the highest frequency"


def test_a_small_study() -> None:
    rows = measure(Lab(TINY_WAN.folder, 1, steps=12), {"ralu-7x": ("ralu-7x", None)}, (2,))
    assert [(row.method, row.steps) for row in rows] == [("ralu-7x", 10), ("2 plain steps", 2)]
    assert rows[0].flop_ratio > 1.5 and rows[1].flop_ratio == 6 and all(5 < row.psnr < 60 for row in rows)
    lines = table([*rows, Row("x", 1, 2.0, 3.0, 0.1, 0.5, 1.0, 0.25)]).splitlines()
    assert lines[-1] == "| x | 1 | 2.00x | 3.0 ± 0.1 dB | 0.500 | 1.00x | 0.25 dB |" and len(lines) == 5
