"""`ralu-cache info`: what is installed, what is supported, what the presets are."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import torch

from ralu_cache.adapters import Adapter, known_adapters
from ralu_cache.adapters.parts import PARTS, parts_of
from ralu_cache.adapters.registry import matching_adapter
from ralu_cache.api import accelerate
from ralu_cache.engine.steppers import STEPPERS
from ralu_cache.generate import Request, call_arguments, load
from ralu_cache.plane.guidance import EARLY
from ralu_cache.plane.presets import LATE_PLANS, PRESETS
from ralu_cache.plane.regions import scorer_names
from ralu_cache.plane.spatial import RALU
from ralu_cache.temporal import resolve_temporal, temporal_names

PACKAGES = (
    "ralu-cache",
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "numpy",
    "scipy",
    "xformers",
    "opencv-python-headless",
    "matplotlib",
    "torchmetrics",
    "gradio",
)
BACKENDS = {"xformers": "xformers", "flash-attn": "flash_attn", "sageattention": "sageattention"}


def describe() -> str:
    """The whole text, a section a paragraph."""
    default = RALU()
    presets = [
        f"{preset.name:<9} {preset.family:<5} steps {_list(preset.steps)}, ends {_list(preset.ends)}, "
        f"shifts {_list(preset.shifts)}, Z {preset.z:g}, refined {preset.ratio:.0%}"
        for preset in PRESETS.values()
    ]
    late = [
        f"{plan.name:<9} steps {_list(plan.steps)}, ends {_list(plan.ends)}, "
        f"shifts {plan.shifts if isinstance(plan.shifts, str) else _list(plan.shifts)}, Z {plan.z:g}, "
        f"guided {plan.guidance}"
        for plan in LATE_PLANS.values()
    ]
    sections = {
        "families and their pipelines": [
            f"{adapter.family}{_stages(adapter)}: {', '.join(adapter.pipelines)}" for adapter in known_adapters()
        ],
        "what a family's adapter can": [
            *(f"{family.family:<15} {', '.join(parts_of(family))}" for family in known_adapters()),
            *(f"{name:<15} serves {use}" for name, (_, use) in PARTS.items()),
        ],
        "spatial presets as RALU.paper(name) runs them (ends in t = 1 - sigma); by name they keep steps and refined "
        f"share, with ends {_list(default.ends)}, the sampler's own shift and Z 3": presets,
        "spatial presets with late ends": late,
        "region scorers": [", ".join(scorer_names())],
        "temporal policies (a value after a colon sets the first option)": _policies(),
        "solvers": [
            "euler        the stock step",
            "multistep:N  UniPC of order N, 1 to 3; 2 if not given",
            "dpm:N      the same without its corrector",
        ],
        "any other pipeline": [
            "temporal='forecast' where the scheduler is one of these, or derives from one; solver= on the first",
            ", ".join(name.removesuffix("Scheduler") for name in STEPPERS),
        ],
        "guidance": [
            "all        as the call says",
            f"early      in the stages that aren't fine; without stages until t = {EARLY:g}",
            "early:T    until t = T, from 0 (noise) to 1 (clean)",
        ],
    }
    return f"{installation()}\n\n{_text(sections)}"


def installation() -> str:
    """What is there: versions, devices, attention backends."""
    return _text({
        "versions": [
            f"python {platform.python_version()}, {platform.platform()}",
            *(f"{name} {_version(name)}" for name in PACKAGES),
        ],
        "devices": _devices(),
        "attention backends": ["torch SDPA", *(name for name, module in BACKENDS.items() if find_spec(module))],
    })  # fmt: skip


def _text(sections: Mapping[str, Sequence[str]]) -> str:
    return "\n\n".join("\n".join([title, *(f"  {line}" for line in lines)]) for title, lines in sections.items())


def describe_model(request: Request) -> str:
    """What works with a pipeline, a line each: by its adapter, or by what a probe finds when it draws two steps."""
    pipe = load(request)
    lines = [f"{type(pipe).__name__} with {type(pipe.scheduler).__name__}"]
    if (adapter := matching_adapter(pipe)) is not None:
        parts = parts_of(type(adapter))
        return "\n".join([*lines, f"family {adapter.family}: {', '.join(parts)}", *(PARTS[part][1] for part in parts)])
    lines.append("no adapter knows it: temporal='forecast' works, which leaves out whole calls of the model")
    with accelerate(pipe, temporal="taylorseer:2") as handle:
        pipe(**call_arguments(request, pipe), output_type="latent")
        works = "its blocks can be reused (temporal='teacache', 'seacache', 'taylorseer')"
        lines += [f"{works}: {finding}" for finding in handle.findings]
    return "\n".join(lines)


def _stages(family: type[Adapter]) -> str:
    """What spatial="ralu" means to a family that has stages."""
    return f" (spatial 'ralu' is '{family.default_preset}')" if "tokens" in parts_of(family) else ""


def _policies() -> list[str]:
    """Every policy by name, with its defaults, the important ones first."""
    lines = []
    for name in temporal_names():
        policy: Any = resolve_temporal(name)
        options = sorted(fields(policy), key=lambda option: bool(option.kw_only))
        values = ", ".join(f"{option.name} {getattr(policy, option.name)}" for option in options)
        lines.append(f"{name:<10} {values}")
    return lines


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _devices() -> list[str]:
    gpus = [f"cuda:{index} {torch.cuda.get_device_name(index)}" for index in range(torch.cuda.device_count())]
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return [*gpus, *mps, f"cpu, {torch.get_num_threads()} threads"]


def _list(values: tuple[float, ...]) -> str:
    return "/".join(f"{value:g}" for value in values)
