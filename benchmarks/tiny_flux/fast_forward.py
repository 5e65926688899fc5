"""A training forward of FluxTransformer2DModel that is faster on CPUs and equal to the stock one.

Fused projections, and attention by two plain products: on a CPU the fused kernel's backward is slow at short lengths.
Not for sampling: it knows no IP adapters and no ControlNet residuals.
"""

import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor

from benchmarks.tiny_flux.flat_parameters import FlatParameters, fused_names

Rope = tuple[Tensor, Tensor]


def sinusoids(number: Tensor) -> Tensor:
    """Sinusoids (B, 256) of 1000 times a noise level or guidance scale (B,), as the stock model takes them."""
    return get_timestep_embedding(number.float() * 1000, 256, flip_sin_to_cos=True, downscale_freq_shift=0)


class FastForward:
    """Velocity prediction from the leaves of `parameters`; call it like a function."""

    def __init__(self, model: FluxTransformer2DModel, dtype: torch.dtype, device: torch.device) -> None:
        self.parameters = FlatParameters(model, fused_names(model), dtype, device)
        self.dtype = dtype
        self.position_embedding = model.pos_embed
        self.doubles, self.singles = model.config.num_layers, model.config.num_single_layers
        self.heads, self.head = model.config.num_attention_heads, model.config.attention_head_dim
        self.width = self.heads * self.head
        self.takes_guidance = bool(model.config.guidance_embeds)

    def __call__(
        self,
        latents: Tensor,
        words: Tensor,
        pooled: Tensor,
        sigma: Tensor,
        positions: Tensor,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """Velocity (B, N, 16), float32.

        Args:
            latents: noisy tokens (B, N, 16).
            words: text features (B, L, 96).
            pooled: pooled text features (B, 64).
            sigma: noise level of every sample (B,), 1 noise to 0 clean.
            positions: ids of the image tokens (N, 3).
            guidance: scale of every sample (B,), for a model with a guidance embedding and for no other.

        Raises ValueError if a guidance is missing, or given to a model that takes none.
        """
        if (guidance is not None) != self.takes_guidance:
            wanted = "needs a guidance" if self.takes_guidance else "takes no guidance"
            raise ValueError(f"this model {wanted} (guidance_embeds is {self.takes_guidance}), got {guidance}")
        length = words.shape[1]
        rope = self.position_embedding(torch.cat([positions.new_zeros(length, 3), positions]))
        condition = self._embed("timestep_embedder", sinusoids(sigma)) + self._embed("text_embedder", pooled)
        if guidance is not None:
            condition = condition + self._embed("guidance_embedder", sinusoids(guidance))
        condition = F.silu(condition)
        image = self._linear("x_embedder", latents.to(self.dtype))
        text = self._linear("context_embedder", words.to(self.dtype))
        for i in range(self.doubles):
            image, text = self._double_block(f"transformer_blocks.{i}", image, text, condition, rope)
        tokens = torch.cat([text, image], 1)
        for i in range(self.singles):
            tokens = self._single_block(f"single_transformer_blocks.{i}", tokens, condition, rope)
        scale, shift = self._modulation("norm_out", condition, 2)
        return self._linear("proj_out", self._modulate(tokens[:, length:], shift, scale)).float()

    def _double_block(
        self, name: str, image: Tensor, text: Tensor, condition: Tensor, rope: Rope
    ) -> tuple[Tensor, Tensor]:
        """Image and text tokens with their own weights and a common attention."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self._modulation(f"{name}.norm1", condition, 6)
        text_modulation = self._modulation(f"{name}.norm1_context", condition, 6)
        text_shift, text_scale, text_gate, text_mlp_shift, text_mlp_scale, text_mlp_gate = text_modulation
        qk, v = self._qkv(self._linear(f"{name}.qkv", self._modulate(image, shift, scale)), f"{name}.qk_norm")
        text_qk, text_v = self._qkv(
            self._linear(f"{name}.context_qkv", self._modulate(text, text_shift, text_scale)), f"{name}.context_qk_norm"
        )
        mixed = self._attend(torch.cat([text_qk, qk], 1), torch.cat([text_v, v], 1), rope)
        length = text.shape[1]
        image = torch.addcmul(image, gate, self._linear(f"{name}.attn.to_out.0", mixed[:, length:]))
        text = torch.addcmul(text, text_gate, self._linear(f"{name}.attn.to_add_out", mixed[:, :length]))
        hidden = self._gelu_mlp(f"{name}.ff.net", self._modulate(image, mlp_shift, mlp_scale))
        text_hidden = self._gelu_mlp(f"{name}.ff_context.net", self._modulate(text, text_mlp_shift, text_mlp_scale))
        return torch.addcmul(image, mlp_gate, hidden), torch.addcmul(text, text_mlp_gate, text_hidden)

    def _single_block(self, name: str, tokens: Tensor, condition: Tensor, rope: Rope) -> Tensor:
        """All tokens alike; attention and MLP in parallel."""
        shift, scale, gate = self._modulation(f"{name}.norm", condition, 3)
        fused = self._linear(f"{name}.qkv_mlp", self._modulate(tokens, shift, scale))
        qkv, hidden = fused.tensor_split([3 * self.width], -1)
        mixed = self._attend(*self._qkv(qkv, f"{name}.qk_norm"), rope)
        joined = torch.cat([mixed, F.gelu(hidden, approximate="tanh")], -1)
        return torch.addcmul(tokens, gate, self._linear(f"{name}.proj_out", joined))

    def _qkv(self, fused: Tensor, norm: str) -> tuple[Tensor, Tensor]:
        """RMS-normed queries and keys (B, S, 2H, head) in float32, and values (B, S, width)."""
        batch, length, _ = fused.shape
        qk, v = fused.tensor_split([2 * self.width], -1)
        qk = qk.reshape(batch, length, 2, self.heads, self.head).float()
        qk = qk * torch.rsqrt(qk.square().mean(-1, keepdim=True) + 1e-6)
        gain = self.parameters.leaves[f"{norm}.weight"].float().view(2, 1, self.head)
        return (qk * gain).view(batch, length, 2 * self.heads, self.head), v

    def _attend(self, qk: Tensor, v: Tensor, rope: Rope) -> Tensor:
        """Rotate queries and keys by their positions and attend; (B, S, width)."""
        batch, length = qk.shape[:2]
        cos, sin = (table[None, :, None] for table in rope)
        turned = torch.stack([-qk[..., 1::2], qk[..., ::2]], -1).flatten(-2)
        q, k = (qk * cos + turned * sin).to(self.dtype).transpose(1, 2).chunk(2, 1)
        v = v.reshape(batch, length, self.heads, self.head).transpose(1, 2)
        if q.is_cuda:
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            out = torch.matmul(torch.matmul(q * self.head**-0.5, k.transpose(-1, -2)).softmax(-1), v)
        return out.transpose(1, 2).reshape(batch, length, self.width)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        leaves = self.parameters.leaves
        return F.linear(x, leaves[f"{name}.weight"], leaves[f"{name}.bias"])

    def _embed(self, name: str, x: Tensor) -> Tensor:
        first, second = (f"time_text_embed.{name}.linear_{number}" for number in (1, 2))
        return self._linear(second, F.silu(self._linear(first, x.to(self.dtype))))

    def _gelu_mlp(self, name: str, x: Tensor) -> Tensor:
        return self._linear(f"{name}.2", F.gelu(self._linear(f"{name}.0.proj", x), approximate="tanh"))

    def _modulation(self, name: str, condition: Tensor, parts: int) -> tuple[Tensor, ...]:
        """Shifts, scales and gates of a block, each (B, 1, width)."""
        return self._linear(f"{name}.linear", condition)[:, None].chunk(parts, -1)

    def _modulate(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return torch.addcmul(shift, F.layer_norm(x, (self.width,), eps=1e-6), 1 + scale)
