"""A training forward of WanTransformer3DModel on token sets that is faster on CPUs than the stock one, and equal to it.

Tokens may lie anywhere, as the stages of a sampler need them. Fused projections, and attention by two plain products:
on a CPU the fused kernel's backward is slow at short lengths. Not for sampling: it knows no conditioning pictures.
"""

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor

from benchmarks.tiny_flux.flat_parameters import FlatParameters

Rope = tuple[Tensor, Tensor]
FUSED = {"attn1.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"), "attn2.kv": ("attn2.to_k", "attn2.to_v")}


def fused_names(model: WanTransformer3DModel) -> dict[str, list[str]]:
    """Leaf name to the parameters it holds, stacked along the first axis."""
    leaves = {
        f"blocks.{number}.{leaf}.{kind}": [f"blocks.{number}.{part}.{kind}" for part in parts]
        for number in range(model.config.num_layers)
        for leaf, parts in FUSED.items()
        for kind in ("weight", "bias")
    }
    used = {name for names in leaves.values() for name in names}
    return leaves | {name: [name] for name, _ in model.named_parameters() if name not in used}


class TokenVelocity:
    """Velocity prediction from the leaves of `parameters`; call it like a function."""

    def __init__(self, model: WanTransformer3DModel, dtype: torch.dtype) -> None:
        config = model.config
        self.parameters = FlatParameters(model, fused_names(model), dtype, torch.device("cpu"))
        self.dtype, self.blocks, self.time_channels = dtype, config.num_layers, config.freq_dim
        self.heads, self.head = config.num_attention_heads, config.attention_head_dim
        self.width = self.heads * self.head
        self.axes = (model.rope.t_dim, model.rope.h_dim, model.rope.w_dim)

    def __call__(self, tokens: Tensor, words: Tensor, sigma: Tensor, positions: Tensor) -> Tensor:
        """Velocity (B, N, 32), float32, of noisy tokens.

        Args:
            tokens: (B, N, 32), channels ordered (latent channel, row, column).
            words: text features (B, L, 96).
            sigma: noise level of every sample (B,), 1 noise to 0 clean.
            positions: (frame, row, column) of the tokens (N, 3), in fine tokens.
        """
        leaves = self.parameters.leaves
        cos, sin = rotary(positions, self.axes)
        rope = cos.to(self.dtype), sin.to(self.dtype)
        frequencies = get_timestep_embedding(
            sigma * 1000, self.time_channels, flip_sin_to_cos=True, downscale_freq_shift=0
        )
        name = "condition_embedder"
        level = self._linear(f"{name}.time_embedder.linear_1", frequencies.to(self.dtype))
        level = self._linear(f"{name}.time_embedder.linear_2", F.silu(level))
        condition = self._linear(f"{name}.time_proj", F.silu(level)).unflatten(1, (6, -1))
        text = self._linear(f"{name}.text_embedder.linear_1", words.to(self.dtype))
        text = self._linear(f"{name}.text_embedder.linear_2", F.gelu(text, approximate="tanh"))
        kernel = leaves["patch_embedding.weight"].flatten(1)
        hidden = F.linear(tokens.to(self.dtype), kernel, leaves["patch_embedding.bias"])
        for number in range(self.blocks):
            hidden = self._block(f"blocks.{number}", hidden, text, condition, rope)
        shift, scale = (leaves["scale_shift_table"] + level[:, None]).chunk(2, 1)
        out = self._linear("proj_out", self._modulate(hidden, shift, scale)).float()
        return out.unflatten(-1, (2, 2, -1)).permute(0, 1, 4, 2, 3).flatten(2)  # from row, column, latent channel

    def _block(self, name: str, hidden: Tensor, text: Tensor, condition: Tensor, rope: Rope) -> Tensor:
        leaves = self.parameters.leaves
        modulation = (leaves[f"{name}.scale_shift_table"] + condition).chunk(6, 1)  # of (B, 1, width) each
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation
        q, k, v = self._linear(f"{name}.attn1.qkv", self._modulate(hidden, shift, scale)).chunk(3, -1)
        q, k = (turn(self._norm(f"{name}.attn1.norm_{letter}", x), rope) for letter, x in (("q", q), ("k", k)))
        mixed = self._linear(f"{name}.attn1.to_out.0", self._attend(q, k, v))
        hidden = torch.addcmul(hidden, gate, mixed)
        gain, bias = leaves[f"{name}.norm2.weight"], leaves[f"{name}.norm2.bias"]
        q = self._linear(f"{name}.attn2.to_q", F.layer_norm(hidden, (self.width,), gain, bias, 1e-6))
        k, v = self._linear(f"{name}.attn2.kv", text).chunk(2, -1)
        q, k = (self._norm(f"{name}.attn2.norm_{letter}", x) for letter, x in (("q", q), ("k", k)))
        hidden = hidden + self._linear(f"{name}.attn2.to_out.0", self._attend(q, k, v))
        inner = self._linear(f"{name}.ffn.net.0.proj", self._modulate(hidden, mlp_shift, mlp_scale))
        return torch.addcmul(hidden, mlp_gate, self._linear(f"{name}.ffn.net.2", F.gelu(inner, approximate="tanh")))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries (B, N, width or heads, head) on keys and values of M tokens; (B, N, width)."""
        q, k, v = (x.reshape(len(x), -1, self.heads, self.head).transpose(1, 2) for x in (q, k, v))
        weights = torch.matmul(q * self.head**-0.5, k.transpose(-1, -2)).softmax(-1)
        return torch.matmul(weights, v).transpose(1, 2).flatten(2)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        """RMS over all heads together: (B, N, width) -> (B, N, heads, head)."""
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
        return (x * scale * self.parameters.leaves[f"{name}.weight"]).unflatten(-1, (self.heads, self.head))

    def _linear(self, name: str, x: Tensor) -> Tensor:
        leaves = self.parameters.leaves
        return F.linear(x, leaves[f"{name}.weight"], leaves[f"{name}.bias"])

    def _modulate(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return torch.addcmul(shift, F.layer_norm(x, (self.width,), eps=1e-6), 1 + scale)


def rotary(positions: Tensor, axes: tuple[int, int, int]) -> Rope:
    """Cosines and sines (1, N, 1, head) for positions (N, 3), each frequency twice in a row."""
    angles = [
        positions[:, [axis]].double() * 10000.0 ** (-torch.arange(0, size, 2) / size) for axis, size in enumerate(axes)
    ]
    table = torch.cat(angles, 1).repeat_interleave(2, 1)[None, :, None]
    return table.cos().float(), table.sin().float()


def turn(x: Tensor, rope: Rope) -> Tensor:
    """Rotate (B, N, heads, head) by the tables of `rotary`; the swap of pairs is a product, which is fast."""
    cos, sin = rope
    swap = x.new_zeros(2, 2)
    swap[0, 1], swap[1, 0] = -1, 1
    return torch.addcmul(x * cos, F.linear(x, torch.block_diag(*[swap] * (x.shape[-1] // 2))), sin)
