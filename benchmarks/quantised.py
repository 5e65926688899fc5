"""Weights quantised after `accelerate()` give the picture that they give when quantised before; off is stock.

    pip install torchao optimum-quanto
    python -m benchmarks.quantised

Eight-bit weights of tiny-flux's transformer, by torchao and by optimum-quanto, with every kind of policy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.joints import KINDS, drawn
from ralu_cache import accelerate
from ralu_cache.models.embedded import TINY_FLUX
from ralu_cache.report.notices import silent


def torchao(transformer: Any) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(transformer, Int8WeightOnlyConfig())


def quanto(transformer: Any) -> None:
    from optimum.quanto import freeze, qint8, quantize

    quantize(transformer, weights=qint8)
    freeze(transformer)


PACKAGES: dict[str, Callable[[Any], None]] = {"torchao": torchao, "optimum-quanto": quanto}


def loaded() -> Any:
    pipe = TINY_FLUX.load()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def compared(quantise: Callable[[Any], None], settings: dict[str, Any], stock: Tensor) -> tuple[bool, bool]:
    """Whether before and after are one picture bit for bit, and whether the pipeline is stock when it is over."""
    before, after = loaded(), loaded()
    quantise(before.transformer)
    with accelerate(before, **settings):
        first = drawn(before)
    with accelerate(after, **settings):
        quantise(after.transformer)
        second = drawn(after)
    return torch.equal(first, second), torch.equal(drawn(after), stock)


@silent()
def main() -> None:
    for package, quantise in PACKAGES.items():
        pipe = loaded()
        quantise(pipe.transformer)
        stock = drawn(pipe)
        for kind, settings in KINDS.items():
            same, off = compared(quantise, settings, stock)
            print(f"{package:15} {kind:20} {'one picture' if same else 'another'}; off is {'' if off else 'not '}stock")


if __name__ == "__main__":
    main()
