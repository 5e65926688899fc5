"""All parameters of a transformer in one vector, with fused leaves for the fast forward.

Query, key, value (and the single blocks' MLP input) projections read the same tokens; laid side by side in the vector,
they are one matrix for one product, without a copy.
"""

from dataclasses import dataclass

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
CONTEXT_QKV = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
DOUBLE_BLOCK = {
    "qkv": QKV,
    "context_qkv": CONTEXT_QKV,
    "qk_norm": ("attn.norm_q", "attn.norm_k"),
    "context_qk_norm": ("attn.norm_added_q", "attn.norm_added_k"),
}
SINGLE_BLOCK = {"qkv_mlp": (*QKV, "proj_mlp"), "qk_norm": ("attn.norm_q", "attn.norm_k")}


@dataclass(frozen=True)
class Slice:
    """Where one parameter of the model lies in the vector."""

    start: int
    shape: torch.Size

    @property
    def stop(self) -> int:
        return self.start + self.shape.numel()

    def view(self, flat: Tensor) -> Tensor:
        """The parameter's values (or gradients, or momenta) in a vector, without a copy."""
        return flat[self.start : self.stop].view(self.shape)


def fused_names(model: FluxTransformer2DModel) -> dict[str, list[str]]:
    """Leaf name to the parameters it holds, stacked along the first axis. Every parameter belongs to one leaf."""
    blocks = [(f"transformer_blocks.{i}", DOUBLE_BLOCK) for i in range(model.config.num_layers)]
    blocks += [(f"single_transformer_blocks.{i}", SINGLE_BLOCK) for i in range(model.config.num_single_layers)]
    present = [name for name, _ in model.named_parameters()]
    leaves = {
        f"{block}.{leaf}.{kind}": [f"{block}.{module}.{kind}" for module in modules]
        for block, layout in blocks
        for leaf, modules in layout.items()
        for kind in ("weight", "bias")
        if f"{block}.{modules[0]}.{kind}" in present
    }
    used = {name for names in leaves.values() for name in names}
    return leaves | {name: [name] for name in present if name not in used}


class FlatParameters:
    """A float32 master vector and a copy in the compute dtype, whose fused views are the autograd leaves."""

    def __init__(
        self, model: nn.Module, leaves: dict[str, list[str]], dtype: torch.dtype, device: torch.device
    ) -> None:
        """`leaves`: leaf name to the parameters it holds; every parameter of the model belongs to one."""
        parameters = dict(model.named_parameters())
        count = sum(p.numel() for p in parameters.values())
        self.master = torch.empty(count, device=device)
        self._compute = torch.empty(count, dtype=dtype, device=device)
        self.slices: dict[str, Slice] = {}
        self.leaves: dict[str, Tensor] = {}
        start = 0
        for leaf, names in leaves.items():
            first = start
            for name in names:
                place = Slice(start, parameters[name].shape)
                place.view(self.master).copy_(parameters[name].detach())
                self.slices[name] = place
                start = place.stop
            tail = parameters[names[0]].shape[1:]
            self.leaves[leaf] = self._compute[first:start].view(-1, *tail).requires_grad_(True)
        self.sync()

    def __len__(self) -> int:
        return self.master.numel()

    @torch.no_grad()
    def sync(self) -> None:
        """Copy the master values to the leaves."""
        self._compute.copy_(self.master)

    @torch.no_grad()
    def take_gradients(self) -> Tensor:
        """All gradients as one float32 vector in the master's order; the leaves' own are dropped."""
        pieces = []
        for leaf in self.leaves.values():
            if leaf.grad is None:
                raise RuntimeError("take_gradients needs a backward pass through every leaf first")
            pieces.append(leaf.grad.flatten().float())
            leaf.grad = None
        return torch.cat(pieces)

    def state_dict(self, flat: Tensor) -> dict[str, Tensor]:
        """A vector (the master, or an average of it) under the model's own parameter names."""
        return {name: place.view(flat).clone() for name, place in self.slices.items()}
