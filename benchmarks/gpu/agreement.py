"""Numerical agreement of every way to compute a step, with tolerances that come from a reference in float64.

The model has the real width and few blocks, because float64 of all of it would take too long; weights and inputs are
the same for all, rounded to bfloat16. What counts is the relative error to the float64 run, |x - reference| /
|reference| over the whole prediction, and the bound is `FACTOR` times that of the stock bfloat16 run.

FACTOR: an honest candidate does the same arithmetic in another order, or with roundings of its own between the same
operations. If it rounds once more wherever the stock run rounds once, the variance of its error doubles and the error
grows by sqrt(2) = 1.41; errors over a million numbers hardly scatter, so 1.5 leaves 6 % for chance. A wrong mask, table
or index is orders of magnitude beyond. (Stock attention rotates queries and keys in float32 whatever the model's
dtype, so the reference itself is good to about 1e-7.)
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.bare import BareCall
from benchmarks.gpu.compiled import backend_for, compiled_blocks
from benchmarks.gpu.models import Shape, build, call_arguments
from benchmarks.gpu.rows import attention_backend, unavailable
from ralu_cache import TeaCache, accelerate
from ralu_cache.adapters import find_adapter
from ralu_cache.adapters.calls import LayoutCall
from ralu_cache.engine.blocks import BlockStack
from ralu_cache.history.attention import KeyValueMemory
from ralu_cache.plane.canvas import TokenLayout
from ralu_cache.temporal import Adaptive

FACTOR = 1.5
BLOCKS = 2  # of each kind
BATCH = 2


def agreement(shape: Shape, device: torch.device) -> dict[str, Any]:
    """One row a candidate: its error, its bound, whether it keeps it; and what could not be run, with the reason."""
    pipe = build(shape.shallow(BLOCKS), device, torch.bfloat16)
    call = capture(pipe, call_arguments(pipe, shape, BATCH, shape.size))
    reference = predict(in_dtype(pipe, torch.float64), cast(call, torch.float64))
    stock = predict(pipe, call)
    bound = FACTOR * (error := distance(stock, reference))
    skipped: dict[str, str] = {}
    rows = [{"candidate": "bfloat16, stock", "error": error, "bound": bound, "within": True}]
    for name, candidate in candidates(pipe, call).items():
        try:
            found = distance(candidate(), reference)
        except Exception as failure:  # a back end that is missing or broken is a result of this machine, not an end
            skipped[name] = f"{type(failure).__name__}: {str(failure).splitlines()[0] if str(failure) else ''}"
            continue
        rows.append({"candidate": name, "error": found, "bound": bound, "within": found <= bound})
    same = {"all computed under hooks, bit for bit stock": hooks_change_nothing(pipe, shape)}
    return {"factor": FACTOR, "blocks": BLOCKS, "rows": rows, "same_bits": same, "skipped": skipped}


def candidates(pipe: Any, call: dict[str, Any]) -> dict[str, Callable[[], Tensor]]:
    """What is compared with the reference; all but the first in bfloat16."""

    def compiled() -> Tensor:
        own = with_transformer(pipe, copy.deepcopy(pipe.transformer))
        with compiled_blocks(own.transformer, backend_for(pipe.transformer.device)):
            return predict(own, call)

    def xformers() -> Tensor:
        if (reason := unavailable(pipe, "xformers")) is not None:
            raise RuntimeError(reason)
        with attention_backend(pipe, "xformers"):
            return predict(pipe, call)

    return {
        "float32, stock": lambda: predict(in_dtype(pipe, torch.float32), cast(call, torch.float32)),
        "bfloat16, compiled blocks": compiled,
        "bfloat16, xformers": xformers,
        "bfloat16, half of the tokens against remembered keys and values": lambda: row_sparse(pipe, call, False),
        "bfloat16, the same with unequal numbers of rows": lambda: row_sparse(pipe, call, True),
    }


@torch.no_grad()
def predict(pipe: Any, call: dict[str, Any]) -> Tensor:
    return pipe.transformer(**call)[0]


def distance(found: Tensor, reference: Tensor) -> float:
    """Relative error over the whole tensor; nan where anything is not finite."""
    return float((found.double() - reference).norm() / reference.norm())


def capture(pipe: Any, call: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the denoiser's call in mid-run of a pipeline call, at level 0.5 and with guidance 2.

    Those are numbers that bfloat16 holds, times 1000 too: a rounded one would be another input, not an error.
    """
    calls: list[dict[str, Any]] = []
    hook = pipe.transformer.register_forward_pre_hook(lambda _m, _a, given: calls.append(given), with_kwargs=True)
    pipe(**{**call, "num_inference_steps": 3, "output_type": "latent"})
    hook.remove()
    found = calls[1]
    found["timestep"] = torch.full_like(found["timestep"], 0.5 if float(found["timestep"].max()) <= 1 else 500.0)
    if found.get("guidance") is not None:
        found["guidance"] = torch.full_like(found["guidance"], 2.0)
    return found


def cast(call: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {
        name: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in call.items()
    }


def in_dtype(pipe: Any, dtype: torch.dtype) -> Any:
    return with_transformer(pipe, copy.deepcopy(pipe.transformer).to(dtype))


def with_transformer(pipe: Any, transformer: Any) -> Any:
    """The same pipeline around another transformer."""
    return type(pipe)(**{**pipe.components, "transformer": transformer})


@torch.no_grad()
def row_sparse(pipe: Any, call: dict[str, Any], unequal: bool) -> Tensor:
    """The prediction when half of the tokens are computed once more, and the others' residuals are those of before.

    Nothing has changed since, so it is the full prediction up to rounding. unequal: every second sample has half as
    many rows; with xformers on a GPU they are packed, elsewhere filled up.
    """
    adapter, net = find_adapter(pipe), pipe.transformer
    batch, _, text = adapter.size(call)
    layout = TokenLayout.coarse(batch, *adapter.grid(call), adapter.patch, net.device)
    memory, still = KeyValueMemory(layout), torch.zeros(batch, layout.tokens, device=net.device)
    bare = BareCall()
    blocks = BlockStack(net, adapter, Adaptive(ratio=0.5), bare, bare.state)
    hooks = adapter.install_positions(net, bare.active)
    try:
        bare.stack.run(memory.begin(text, still))
        bare.predict(net, call)
        residual = bare.stack.take()
        tokens, counts = _chosen(layout, unequal)
        rows = memory.begin(text, still, tokens=tokens, counts=counts)
        short = adapter.sparse_control(call, tokens)
        bare.working.active = LayoutCall(layout, None, short, {}, adapter.grid(call), None, rows)
        bare.stack.run(rows, residual)
        return bare.predict(net, short)
    finally:
        blocks.remove()
        for hook in hooks:
            hook.remove()


def _chosen(layout: TokenLayout, unequal: bool) -> tuple[Tensor, tuple[int, ...]]:
    """(B, n / 2) tokens, others in each sample, and how many of them are meant; the rest repeat the first."""
    half = layout.tokens // 2
    counts = tuple(half // 2 if unequal and sample % 2 else half for sample in range(layout.batch))
    generator = torch.Generator().manual_seed(0)
    tokens = torch.stack([torch.randperm(layout.tokens, generator=generator)[:half] for _ in counts])
    meant = torch.arange(half) < torch.tensor(counts)[:, None]
    return torch.where(meant, tokens, tokens[:, :1]).to(layout.refined.device), counts


def hooks_change_nothing(pipe: Any, shape: Shape) -> bool:
    """True if a run in which hooks, policy and ledger are at work and nothing is reused has the bits of a stock run."""

    def latents() -> Tensor:
        call = call_arguments(pipe, shape, BATCH, shape.size)
        return pipe(**{**call, "num_inference_steps": 3, "output_type": "latent"}).images

    stock = latents()
    with accelerate(pipe, temporal=TeaCache(0.0)):
        return torch.equal(latents(), stock)
