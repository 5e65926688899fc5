"""A call to tune for and its prompts, by their embeddings, and the trials of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optuna import load_study

from ralu_cache.tune.storage import NAME, open_storage
from tests.pipelines import pictures

CALL = {"height": 32, "width": 48, "num_inference_steps": 8, "true_cfg_scale": 2.5}


def prompts(count: int = 2) -> list[dict[str, Any]]:
    names = [name for name in pictures([0]) if name.endswith("embeds")]
    return [{name: pictures([number])[name] for name in names} for number in range(count)]


def trials_of(where: Path) -> list[Any]:
    return load_study(study_name=NAME, storage=open_storage(where)).get_trials()
