"""Constructor arguments that make a component of a pipeline tiny, read off its signature.

A model's arguments have defaults of the released size; the names say what they mean. Widths become `WIDTH`, depths 2,
channels of latents stay as they are, so that parts which fit together in their released sizes still do.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

WIDTH = 32
HEADS = 2
DEPTH = 2
CHANNELS = 32  # of convolutions: some normalise in 32 groups, whatever they are told
LONGEST = 77  # tokens of a prompt

WIDTHS = frozenset({
    "adaln_dim", "adaln_lora_dim", "c", "c_cond", "cap_feat_dim", "caption_channels", "caption_projection_dim",
    "cath_emb_dim",
    "approximator_hidden_dim", "audio_cross_attention_dim", "audio_hidden_dim", "clip_embeddings_dim", "clip_img_dim",
    "cond_embed_dim", "cond_token_dim", "condition_dim", "conditioning_dim", "context_in_dim", "cross_attention_dim",
    "cross_attention_dim_t5", "crossattn_proj_in_channels", "d_model", "dim", "dim_cond", "dit_dim", "dit_text_dim",
    "embed_dim", "embedding_dim", "encoder_hid_dim", "encoder_hidden_size", "encoder_hidden_states_channels",
    "face_encoder_hidden_dim", "global_cond_dim", "global_states_input_dim", "hidden_size", "image_dim",
    "image_embed_dim", "img_context_dim_out", "in_text_dim", "in_text_dim2", "joint_attention_dim", "llm_features_dim",
    "micro_cond_embed_dim", "model_channels", "model_dim", "motion_encoder_dim", "motion_style_dim", "n_embd",
    "output_dim", "pooled_projection_dim", "projection_dim", "redux_dim", "text_dim", "text_emb_dim", "text_embed_dim",
    "text_embed_2_dim", "text_encoder_dim", "text_hidden_dim", "text_in_dim", "token_dim", "txt_in_features",
    "video_cross_attention_dim", "video_hidden_dim", "cross_attention_input_dim", "cross_attention_hidden_size",
    "out_hidden_size", "vision_hidden_size", "audio_model_dim",
})  # fmt: skip
"""Arguments that are widths of a stream of tokens or of what is projected to one."""

SIZES: dict[str, Any] = {
    "attention_head_dim": WIDTH // HEADS, "audio_attention_head_dim": WIDTH // HEADS, "dim_head": WIDTH // HEADS,
    "head_dim": WIDTH // HEADS, "d_kv": WIDTH // HEADS, "dim_heads": WIDTH // HEADS,
    "cross_attention_head_dim": WIDTH // HEADS, "audio_connector_attention_head_dim": WIDTH // HEADS,
    "video_connector_attention_head_dim": WIDTH // HEADS, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS, "num_kv_heads": HEADS, "n_heads": HEADS, "n_kv_heads": HEADS, "num_heads": HEADS,
    "audio_num_attention_heads": HEADS, "audio_connector_num_attention_heads": HEADS, "nheads": HEADS, "nhead": HEADS,
    "video_connector_num_attention_heads": HEADS, "num_cross_attention_heads": HEADS, "dit_heads": HEADS,
    "num_key_value_attention_heads": HEADS, "text_num_attention_heads": HEADS, "text_num_key_value_heads": HEADS,
    "block_num_heads": HEADS, "n_head": HEADS, "num_layers": DEPTH, "n_layers": DEPTH, "n_layer": DEPTH, "depth": DEPTH,
    "nlayers": DEPTH,
    "dit_depth": DEPTH, "num_single_layers": DEPTH, "num_refiner_layers": 1, "n_refiner_layers": 1,
    "num_mmdit_layers": 1, "num_single_dit_layers": DEPTH, "mmdit_layers": DEPTH, "num_visual_blocks": DEPTH,
    "num_text_blocks": 1, "num_decoder_layers": DEPTH, "transformer_num_layers": DEPTH,
    "num_lyric_encoder_hidden_layers": 1,
    "num_timbre_encoder_hidden_layers": 1, "num_attention_pooler_hidden_layers": 1, "approximator_layers": 1,
    "ffn_dim": 2 * WIDTH, "ff_dim": 2 * WIDTH, "d_ff": 2 * WIDTH, "intermediate_size": 2 * WIDTH,
    "ffn_hidden_size": 2 * WIDTH, "text_intermediate_size": 2 * WIDTH, "moe_intermediate_size": 2 * WIDTH,
    "moe_intermediate_dim": 2 * WIDTH, "mlp_hidden_dim": 2 * WIDTH, "time_embed_dim": WIDTH, "time_dim": WIDTH,
    "time_embedding_dim": None, "multiple_of": 8, "num_experts": 4, "num_routed_experts": 2, "pos_embed_max_size": 32,
    "rope_max_seq_len": 64, "vocab_size": 1000, "norm_num_groups": 4, "motion_norm_num_groups": 4, "groups": 4,
    "layers_per_block": 1, "layers_per_down_block": 1, "layers_per_up_block": 1, "num_res_blocks": 1, "base_dim": 8,
    "decoder_base_dim": None,
    "base_channels": 32, "hidden_channels": 32, "mid_channels": 32, "decoder_channels": 8,
    "num_blocks_per_stage": 1, "num_trans_channel": CHANNELS, "num_proj_channel": CHANNELS, "num_trans_head": HEADS,
    "motion_layers_per_block": 1, "max_num_gist_tokens": 16, "min_num_gist_tokens": 8, "num_query_tokens": 4,
    "max_position_embeddings": 4096, "sample_frames": 9, "bottleneck_blocks": 1, "num_vq_embeddings": 32,
    "num_train_timesteps": 1000,
}  # fmt: skip
"""What other arguments become, by name."""

AXES = frozenset(
    {"axes_dims_rope", "rope_axes_dim", "axes_dims", "axes_dim_rope", "axes_dim", "rope_dim_list", "rope_dim"}
)
"""Arguments that divide a head among the axes of a position."""

STACKS = frozenset({
    "block_out_channels", "encoder_block_out_channels", "decoder_block_out_channels", "decode_block_out_channels",
    "down_block_out_channels", "up_block_out_channels", "base_block_out_channels", "channels",
    "conditioning_embedding_out_channels",
})  # fmt: skip
"""Arguments that give the channels of each level."""


def shrunk(component: type, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The arguments with which a diffusers model is built tiny; `overrides` go before what the names say."""
    given: dict[str, Any] = {}
    for name, parameter in inspect.signature(component.__init__).parameters.items():
        if name == "self":
            continue
        if (value := tiny(name, parameter.default)) is not parameter.default:
            given[name] = value
    return {**given, **(overrides or {})}


def tiny(name: str, default: Any) -> Any:
    """The tiny value of an argument; the default itself where the name says nothing."""
    if default is None:
        return default
    if name in AXES:
        return divided(WIDTH // HEADS, default) if isinstance(default, tuple | list) else default
    if name in STACKS and isinstance(default, tuple | list):
        return type(default)([CHANNELS] * len(default))
    if name in WIDTHS:
        return WIDTH
    if name in SIZES:
        value = SIZES[name]
        return type(default)([value] * len(default)) if isinstance(default, tuple | list) else value
    return default


def divided(width: int, shares: Any) -> Any:
    """`width` divided in even parts, in proportion to `shares`: (16, 56, 56) of 16 -> (2, 6, 8)."""
    total = sum(shares)
    parts = [max(2, 2 * int(width * share / total / 2)) for share in shares]
    parts[-1] += width - sum(parts)
    return type(shares)(parts)
