"""Whether a change of the code's layout changed a picture: hashes of latents over families, plans, policies, guidance.

    python -m benchmarks.recorder --out before.json     # at the old commit
    python -m benchmarks.recorder --against before.json # at the new one: exit 1, with their names, where bits differ

One thread, small random pipelines of every family and the embedded models; a hash is of one processor's arithmetic, so
both runs belong on one machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ralu_cache import RALU, accelerate
from ralu_cache.models.embedded import EMBEDDED
from tests.surroundings import FAMILIES

PLANS: dict[str, Any] = {
    "none": None, "ralu-4x": "ralu-4x", "ralu-7x": "ralu-7x", "ralu-15x": "ralu-15x", "paper": RALU.paper("ralu-4x"),
    "split": RALU(split=(2, 2, 4), regions="step-variance", lift="bicubic", shifts="nt-dm"),
}  # fmt: skip
POLICIES = (
    None, "teacache:0.3", "seacache:0.3", "taylorseer:3", "taylorseer:2,per_layer=true", "toca",
    "adaptive:interval=2,ratio=0.3",
)  # fmt: skip
GUIDANCE = (None, "early:0.4")
MODELS = ("tiny-flux", "tiny-sd3", "tiny-wan")


def digest(latents: torch.Tensor) -> str:
    return hashlib.sha256(latents.detach().contiguous().numpy().tobytes()).hexdigest()[:24]


def cells() -> Iterator[tuple[str, str]]:
    """(name, hash or the error's class) of each setting."""
    for family in FAMILIES.values():
        given = family.arguments((0, 1), guided=True)
        for plan, spatial in PLANS.items():
            for temporal in POLICIES:
                for guidance in GUIDANCE if temporal in (None, "seacache:0.3") else (None,):
                    name = f"{family.name} {plan} {temporal} {guidance}"
                    yield name, drawn(family.make(), given, spatial, temporal, guidance)
    for model in MODELS:
        yield from embedded(model)


def embedded(model: str) -> Iterator[tuple[str, str]]:
    for spatial, temporal in ((None, None), ("ralu-4x", None), ("ralu-4x", "seacache:0.3"), (None, "taylorseer:3")):
        pipe = EMBEDDED[model].load()
        pipe.set_progress_bar_config(disable=True)
        small = {} if model == "tiny-wan" else {"height": 64, "width": 64}
        given = dict(EMBEDDED[model].arguments) | small | {
            "prompt": "a red circle on a blue background", "negative_prompt": "", "num_inference_steps": 8,
            "generator": torch.Generator().manual_seed(3), "output_type": "latent", "return_dict": False,
        }  # fmt: skip
        yield f"{model} {spatial} {temporal}", drawn(pipe, given, spatial, temporal, None)


def drawn(pipe: Any, given: dict[str, Any], spatial: Any, temporal: str | None, guidance: str | None) -> str:
    pipe.set_progress_bar_config(disable=True)
    seeds = given["generator"]
    for generator in seeds if isinstance(seeds, list) else [seeds]:
        generator.manual_seed(generator.initial_seed())
    try:
        with accelerate(pipe, spatial=spatial, temporal=temporal, guidance=guidance):
            latents = pipe(**given)[0]
    except (ValueError, TypeError, NotImplementedError) as error:
        return type(error).__name__
    return digest(latents)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--against", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = dict(cells())
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{len(found)} settings, {sum(len(value) < 24 for value in found.values())} refused")
    if options.against:
        before = json.loads(options.against.read_text())
        differ = [name for name in found if found[name] != before.get(name)]
        print("\n".join(differ) or "all bits as before")
        sys.exit(bool(differ))


if __name__ == "__main__":
    main()
