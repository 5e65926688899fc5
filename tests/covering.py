"""The tests that decide what of the rooms is covered: their own, and those of the engine that go through most of it.

`make coverage` runs these alone, for the tracer slows what it follows; what only other tests execute counts as missing.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest

COVERING = {
    "test_anywhere", "test_anywhere_waits", "test_attention", "test_budget", "test_caching", "test_canvas",
    "test_coefficients", "test_errors", "test_experts", "test_flux2", "test_forecasts", "test_guidance",
    "test_host_work", "test_hunyuan", "test_laws", "test_layers", "test_ledger", "test_predictions", "test_probe",
    "test_profiles", "test_qwen", "test_qwen21", "test_ranks", "test_refused", "test_regions", "test_row_sparse",
    "test_schedule", "test_spatial", "test_temporal_adaptive", "test_temporal_base", "test_temporal_forecast",
    "test_temporal_seacache", "test_temporal_taylorseer", "test_temporal_teacache", "test_temporal_toca",
    "test_transition", "test_trend", "test_unipc_stages",
}  # fmt: skip


def mark_covering(items: Iterable[pytest.Item]) -> None:
    """`covering` for those, unless they are slow."""
    for item in items:
        if item.path.stem in COVERING and item.get_closest_marker("slow") is None:
            item.add_marker("covering")
