"""A stock transformer with row-sparse calls by hand, and the families, ControlNets and Kontext to try them on."""

from __future__ import annotations

from functools import partial
from typing import Any

import diffusers
import torch
from torch import Tensor

from benchmarks.bare import BareCall
from ralu_cache.adapters import find_adapter
from ralu_cache.adapters.calls import LayoutCall
from ralu_cache.engine.blocks import BlockStack, StackState
from ralu_cache.history.attention import KeyValueMemory, Rows
from ralu_cache.plane.canvas import TokenLayout, patchify
from ralu_cache.temporal.adaptive import Adaptive
from tests.adapter_conformance import FAMILIES, SMALL, Family, stock_call
from tests.pipelines import make_controlnet, make_pipeline, make_sd3_controlnet, make_sd3_pipeline, random_image
from tests.pipelines_qwen import make_qwen_controlnet, make_qwen_pipeline, qwen_pictures


def with_control(samples: Any, **overrides: Any) -> dict[str, Any]:
    return SMALL(samples, control_image=random_image(32, 48), **overrides)


def qwen_with_control(samples: Any, **overrides: Any) -> dict[str, Any]:
    return qwen_pictures(samples, height=32, width=48, control_image=random_image(32, 48), **overrides)


def with_reference(samples: Any, **overrides: Any) -> dict[str, Any]:
    return SMALL(samples, image=random_image(32, 48), _auto_resize=False, max_area=32 * 48, **overrides)


CASES = [
    *FAMILIES,
    Family(
        "flux controlnet",
        lambda: make_pipeline(diffusers.FluxControlNetPipeline, controlnet=make_controlnet()),
        with_control, 96, guided={}, unguided={},
    ),
    Family(
        "sd3 controlnet",
        lambda: make_sd3_pipeline(diffusers.StableDiffusion3ControlNetPipeline, controlnet=make_sd3_controlnet()),
        with_control, 96, guided={}, unguided={"guidance_scale": 1.0},
    ),
    Family(
        "qwen-image controlnet",
        lambda: make_qwen_pipeline(diffusers.QwenImageControlNetPipeline, controlnet=make_qwen_controlnet()),
        qwen_with_control, 96, guided={}, unguided={"true_cfg_scale": 1.0},
    ),
    Family("flux kontext", partial(make_pipeline, diffusers.FluxKontextPipeline), with_reference, 96, {}, {}),
]  # fmt: skip


class Bench:
    """A stock transformer, its stack of blocks under control, and a memory of one layout; calls by hand."""

    def __init__(self, case: Family) -> None:
        self.pipe = case.make()
        self.net = self.pipe.transformer
        self.adapter = find_adapter(self.pipe)
        self.call = stock_call(case, self.pipe)
        batch, self.tokens, self.text = self.adapter.size(self.call)
        self.grid = self.adapter.grid(self.call)
        frames = self.adapter.frames(self.call)
        self.layout = TokenLayout.coarse(batch, *self.grid, self.adapter.patch, frames=frames)
        self.bare = BareCall()
        self.blocks = BlockStack(self.net, self.adapter, Adaptive(ratio=0.5), self, self.bare.state)
        self.memory = KeyValueMemory(self.layout)
        self.positions = self.adapter.install_positions(self.net, self.bare.active)

    def close(self) -> None:
        self.blocks.remove()
        for handle in self.positions:
            handle.remove()

    @property
    def stack(self) -> StackState:
        """What the blocks do in the next call, and what was seen of the latest."""
        return self.bare.stack

    def moved(self, by: float) -> dict[str, Any]:
        """The call on other latents."""
        return {**self.call, "hidden_states": self.call["hidden_states"] * (1 + by)}

    @property
    def unmoved(self) -> Tensor:
        """Every call is at one level."""
        return torch.zeros(self.layout.batch, self.layout.tokens)

    @property
    def extra(self) -> int:
        """Reference tokens behind the image's."""
        return self.tokens - self.layout.tokens

    def full(self, call: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Prediction and residual of all tokens, whose keys and values are kept."""
        rows = self.memory.begin(self.text, self.unmoved)
        self.stack.run(rows)
        return self.predict(call), self.stack.take()

    def sparse(
        self, call: dict[str, Any], tokens: Tensor, stale: Tensor, counts: tuple[int, ...] = ()
    ) -> tuple[Tensor, Tensor]:
        """Prediction, and the residual of some tokens (B, m), the others' being `stale`."""
        counts = counts or (tokens.shape[1],) * len(tokens)
        rows = self.memory.begin(self.text, self.unmoved, tokens=tokens, counts=counts)
        self.stack.run(rows, stale)
        return self.predict(self.adapter.sparse_control(call, tokens), rows), self.stack.take()

    def predict(self, call: dict[str, Any], rows: Rows | None = None) -> Tensor:
        self.bare.working.active = LayoutCall(self.layout, None, call, {}, self.grid, None, rows)
        with torch.no_grad():
            return self.bare.predict(self.net, call)

    def at_rest(self) -> Tensor:
        """The prediction of the call when nothing is under way in it."""
        self.bare.working.rest()
        with torch.no_grad():
            return self.bare.predict(self.net, self.call)

    def entries(self) -> dict[str, Tensor]:
        """What the memory holds of every layer, by place in its sequence."""
        return {name: self.memory.newest(name) for name in self.memory._layers}

    def put_back(self, entries: dict[str, Tensor]) -> None:
        for name, layer in self.memory._layers.items():
            layer.slots[:] = entries[name]

    def by_token(self, prediction: Tensor) -> Tensor:
        """(B, n, d): the image tokens' part of a prediction."""
        if prediction.ndim == 3:
            return prediction[:, : self.layout.tokens]
        return patchify(self.adapter.to_image(prediction, self.grid), self.adapter.patch)


def drawn(batch: int, tokens: int, count: int, seed: int = 0) -> Tensor:
    """(B, count) tokens in random order, others for each sample."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(tokens, generator=generator)[:count] for _ in range(batch)])
