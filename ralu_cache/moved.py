"""Modules that moved into rooms: their old names still import, with a DeprecationWarning that tells the new one."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "attention": "history.attention",
    "budget": "plane.budget",
    "calibration": "tune.calibration",
    "calibration.fit": "tune.calibration.fit",
    "calibration.watch": "tune.calibration.watch",
    "canvas": "plane.canvas",
    "coefficients": "temporal.coefficients",
    "comparison": "sweep.comparison",
    "composition": "report.timeline",
    "cross_flops": "report.flops",
    "embedded": "models.embedded",
    "feature": "history.feature",
    "flops": "report.flops",
    "guidance": "plane.guidance",
    "layer_cache": "history.layer_cache",
    "ledger": "history.ledger",
    "methods": "sweep.methods",
    "plots": "report.figures",
    "presets": "plane.presets",
    "recommended": "sweep.recommend",
    "regions": "plane.regions",
    "report_text": "report.text",
    "schedule": "plane.schedule",
    "spatial": "plane.spatial",
    "temporal.forecast": "history.residuals",
    "token_map": "plane.token_map",
    "transition": "plane.transition",
    "videos": "report.videos",
}


class _Alias(Loader):
    """Loads the new module under the old name: both are one module."""

    def __init__(self, new: str) -> None:
        self._new = new
        self._spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self._new)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import system had just written the old name's


class _Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        package, _, old = name.partition(".")
        if package != "ralu_cache" or old not in MOVED:
            return None
        new = f"ralu_cache.{MOVED[old]}"
        warnings.warn(f"{name} is now {new}", DeprecationWarning, stacklevel=2)
        return ModuleSpec(name, _Alias(new), is_package=old == "calibration")


def keep_old_names() -> None:
    """Once a process. The finder comes first: a package under its old name would find its modules a second time."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
