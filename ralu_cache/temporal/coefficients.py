"""Which coefficients serve a TeaCache with coefficients="auto": those fitted to the model, or its family's.

A profile that `ralu-cache calibrate --beside` wrote lies in the model's folder, `teacache.json` for runs without
stages and `teacache-PLAN.json` for a named plan. The coefficients belong to the transformer, so it is the folder that
the transformer was loaded from that counts, wherever the rest of the pipeline is from. Nothing is ever downloaded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from ralu_cache.temporal import Policy, TeaCache
from ralu_cache.temporal.prediction import Forecast
from ralu_cache.temporal.teacache import AUTO, COEFFICIENTS

NO_PLAN = "none"
_NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class Calibrated:
    """A policy as it runs on a model, how reports call it, and a notice where its coefficients are a makeshift."""

    policy: Policy | Forecast | None
    name: str
    notice: str | None = None


def calibrated(
    policy: Policy | Forecast | None, name: str, transformer: Any, family: str, plan: str
) -> Calibrated:
    """The policy with the coefficients that serve it on this model; any that leaves no choice is left as it is.

    plan: the spatial method's name, "none" for none. In this order: the profile for the plan beside the model; those
    published for the family; "identity". A profile for runs without stages does not serve a plan: there it was measured
    to decide worse than the published ones (benchmarks/results/calibration). Raises ValueError, with the path, for a
    file that is no profile.
    """
    if not isinstance(policy, TeaCache) or policy.coefficients != AUTO:
        return Calibrated(policy, name)
    notice = None
    if (found := find_profile(transformer, plan)) is not None:
        coefficients = str(found)
    else:
        coefficients = family if family in COEFFICIENTS else "identity"
        notice = _makeshift(coefficients, find_profile(transformer, NO_PLAN), family, plan)
    return Calibrated(replace(policy, coefficients=coefficients), f"{name} (coefficients {coefficients})", notice)


def _makeshift(coefficients: str, plain: Path | None, family: str, plan: str) -> str | None:
    """A notice that better coefficients can be had; None where nothing says so."""
    if plain is not None:
        return (
            f"TeaCache's coefficients are {coefficients!r}, because those in {plain} were fitted without stages and do "
            f"not serve the plan {plan}; `ralu-cache calibrate --beside --spatial NAME` fits them to a named plan"
        )
    if coefficients == "identity":
        return (
            f"no TeaCache coefficients were published for {family}: changes of its signal count as they are, so a "
            "threshold published for FLUX does not mean the same; `ralu-cache calibrate --beside` fits coefficients "
            "to your model"
        )
    return None


def profile_name(plan: str) -> str:
    """The file in a model's folder in which the profile for a plan lies."""
    return "teacache.json" if plan == NO_PLAN else f"teacache-{plan}.json"


def find_profile(transformer: Any, plan: str) -> Path | None:
    """The profile for a plan beside the model; of a model named by its id on the Hub, the one in the local cache."""
    named = _NAME.fullmatch(plan)  # not the repr of a plan of one's own, which no file name can hold
    return file_beside(transformer, profile_name(plan)) if named else None


def file_beside(transformer: Any, name: str) -> Path | None:
    """A file of this name beside the model, or in the local cache if the model was named by its id on the Hub."""
    origin = _origin(transformer)
    if origin is None:
        return None
    if Path(origin).is_dir():
        beside = _whole(Path(origin)) / name
        return beside if beside.is_file() else None
    try:
        cached = try_to_load_from_cache(origin, name)
    except HFValidationError:  # neither a folder nor the name of a repository: it was moved since
        return None
    return Path(cached) if isinstance(cached, str) else None


def model_folder(transformer: Any) -> Path:
    """The folder into which a profile for the model can be put. Raises ValueError if there is none to write to."""
    origin = _origin(transformer)
    if origin is None or not Path(origin).is_dir():
        raise ValueError(f"the transformer was not loaded from a folder, but from {origin!r}; name a file with --out")
    folder = _whole(Path(origin))
    if not os.access(folder, os.W_OK):
        raise ValueError(f"the model's folder {folder} cannot be written to; name another file with --out")
    return folder


def _origin(transformer: Any) -> str | None:
    """What `from_pretrained` was given, as diffusers keeps it in the configuration."""
    config = getattr(transformer, "config", None)
    origin = config.get("_name_or_path") if isinstance(config, Mapping) else None
    return None if origin is None else str(origin)


def _whole(folder: Path) -> Path:
    """The pipeline's folder if this is the one of its transformer."""
    return folder.parent if (folder.parent / "model_index.json").is_file() else folder
