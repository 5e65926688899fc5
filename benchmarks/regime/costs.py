"""What each setting of the study keeps in memory between the model's calls, and how often it calls the model.

    python -m benchmarks.regime.costs [--models tiny-flux tiny-flux-dev tiny-sd3]

One picture a setting, nothing compiled. Before a call of the denoiser all tensors that are alive are added up; what
there is more of than before the first call is what caches, histories and multistep samplers hold. FLUX.1-dev's share is
computed, not measured: the same tensors with its 4096 tokens of 3072 channels (64 on the canvas) at 1024x1024, in the
precision in which they are held here. Writes costs.json; goes on where it stopped.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.regime.measures import OUT
from benchmarks.regime.peers import fresh_for, peer
from benchmarks.regime.pictures import scene_prompts
from benchmarks.regime.setting import Setting, arguments, draw, load, plain_pipeline, step_flops
from benchmarks.regime.settings import FOUND, REFERENCE, REGIMES, settings

MEASURED = (1, 2, 3, 4, 6, 8, 11, 14, 20, 28, 40, 56, 80)  # calls before which tensors are added up
WIDTH, TOKENS, TEXT = 192, 256, 16  # of tiny FLUX at 128x128
FLUX_WIDTH, FLUX_TOKENS, FLUX_TEXT, FLUX_CHANNELS, FLUX_LAYERS = 3072, 4096, 512, 64, 57
CHANNELS, LAYERS = 16, 8  # of tiny FLUX
PER_LAYER = ("pab:", "taylorseer:")  # peers that keep something of every layer
Held = tuple[tuple[int, ...], int]  # shape, bytes of an element


@dataclass
class Watch:
    """samples: that went through a denoiser. peak: what was held beyond the first call, where that was most."""

    samples: int = 0
    peak: Counter[Held] = field(default_factory=Counter)
    _calls: int = 0
    _first: dict[int, Held] = field(default_factory=dict)

    def begin(self, module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.samples += len(named["hidden_states"] if "hidden_states" in named else given[0])
        self._calls += 1
        if self._calls not in MEASURED:
            return
        now = alive()
        if self._calls == 1:
            self._first = now
        come, gone = (
            Counter(held for place, held in these.items() if place not in those)
            for these, those in ((now, self._first), (self._first, now))
        )
        more = come - gone
        if size(more) > size(self.peak):
            self.peak = more


def alive() -> dict[int, Held]:
    """All tensors that Python holds, by the place of their storage: those that share one count once, as a whole."""
    gc.collect()
    found: dict[int, Held] = {}
    for each in gc.get_objects():
        if issubclass(type(each), torch.Tensor) and each.device.type == "cpu" and each.layout == torch.strided:
            storage = each.untyped_storage()
            if each.numel() * each.element_size() == storage.nbytes() or storage.data_ptr() not in found:
                found[storage.data_ptr()] = tuple(each.shape), each.element_size()
    return found


def size(held: Counter[Held]) -> int:
    """Bytes."""
    return sum(count * math.prod(shape) * element for (shape, element), count in held.items())


def on_flux(held: Counter[Held], layers: bool) -> int:
    """Bytes of the same tensors of FLUX.1-dev at 1024x1024; layers: whether every layer has its own."""
    total = 0.0
    for (shape, element), count in held.items():
        elements, last = math.prod(shape), shape[-1] if shape else 1
        if last % WIDTH == 0 and len(shape) > 1:
            rows = elements // last
            text = TEXT if rows % TOKENS == TEXT or rows == TEXT else 0
            rows = (rows - text) * FLUX_TOKENS // TOKENS + text * FLUX_TEXT // TEXT
            elements = rows * last * FLUX_WIDTH // WIDTH
        else:
            elements = elements * FLUX_TOKENS // TOKENS * FLUX_CHANNELS // CHANNELS
        total += count * elements * element
    return round(total * (FLUX_LAYERS / LAYERS if layers else 1))


@contextmanager
def watched(pipe: Any) -> Iterator[Watch]:
    watch = Watch()
    hook = pipe.transformer.register_forward_pre_hook(watch.begin, prepend=True, with_kwargs=True)
    try:
        yield watch
    finally:
        hook.remove()


def measure(model: str, setting: Setting) -> dict[str, int]:
    """samples: through the denoiser for one picture. held: bytes. flux: computed for FLUX.1-dev, of a FLUX alone."""
    fresh = setting.peer is not None and fresh_for(setting.peer)
    pipe = load(model) if fresh else plain_pipeline(model)
    if setting.peer is not None:
        step_flops(model, setting.scale, 1)  # which is measured once, by a call
        if not fresh:
            with peer(pipe, setting.peer, setting.steps, arguments(model, setting)):
                pass  # what it calibrates is no part of a call
    with watched(pipe) as watch:
        draw(model, setting, scene_prompts("train", 1), [0], pipe)
    found = {"samples": watch.samples, "held": size(watch.peak)}
    if model != "tiny-sd3":
        found["flux"] = on_flux(watch.peak, (setting.peer or "").startswith(PER_LAYER))
    return found


def read(out: Path) -> dict[str, dict[str, int]]:
    """By "model/made" of a setting."""
    path = out / "costs.json"
    return json.loads(path.read_text()) if path.exists() else {}


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(FOUND), default=list(FOUND))
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(given)
    torch.set_num_threads(1)
    found = read(options.out)
    for model in options.models:
        known = {one.made: one for regime in REGIMES for one in settings(model, regime) if one.name != REFERENCE}
        for made, setting in tqdm(known.items(), desc=model, mininterval=30):
            if f"{model}/{made}" not in found:
                found[f"{model}/{made}"] = measure(model, setting)
                options.out.mkdir(parents=True, exist_ok=True)
                (options.out / "costs.json").write_text(json.dumps(found, indent=0) + "\n")


if __name__ == "__main__":
    main()
