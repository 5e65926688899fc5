"""First weights of the tiny SD3 transformer, from tiny FLUX's.

A double block of FLUX is a joint block of SD3 but for the rotary positions. A single block becomes one too: text and
image get the same weights, and the MLP that stood beside the attention comes after it. Only what FLUX lacks starts
elsewhere: the second attention passes nothing, pooled text starts anew. Positions have to be learnt.
"""

import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from torch import Tensor

State = dict[str, Tensor]
SOURCES = (("double", 0), ("double", 1), ("single", 0), ("single", 2), ("single", 5))
"""The block of tiny FLUX for each block of tiny SD3."""
FOLDERS = {"double": "transformer_blocks", "single": "single_transformer_blocks"}
SHARED = (
    "time_text_embed.timestep_embedder.linear_1", "time_text_embed.timestep_embedder.linear_2",
    "time_text_embed.text_embedder.linear_2", "context_embedder", "norm_out.linear",
)  # fmt: skip


def transplant(model: SD3Transformer2DModel, flux: FluxTransformer2DModel) -> None:
    """Overwrite all weights of `model` for which `flux` has some. Raises ValueError for other numbers of blocks."""
    if model.config.num_layers != len(SOURCES):
        raise ValueError(f"a model of {model.config.num_layers} blocks, but {len(SOURCES)} are given by SOURCES")
    source, target = flux.state_dict(), model.state_dict()
    found = {f"{name}.{kind}": source[f"{name}.{kind}"] for name in SHARED for kind in ("weight", "bias")}
    found |= {
        "pos_embed.proj.weight": source["x_embedder.weight"].unflatten(1, (-1, 2, 2)),
        "pos_embed.proj.bias": source["x_embedder.bias"],
    }
    for kind in ("weight", "bias"):  # FLUX: latent channel, row, column; SD3: row, column, latent channel
        rows = source[f"proj_out.{kind}"]
        found[f"proj_out.{kind}"] = rows.unflatten(0, (-1, 4)).transpose(0, 1).flatten(0, 1)
    for number, (kind, place) in enumerate(SOURCES):
        prefix = f"{FOLDERS[kind]}.{place}."
        block = {name.removeprefix(prefix): value for name, value in source.items() if name.startswith(prefix)}
        if kind == "single":
            block = joint_block(block)
        found |= {f"transformer_blocks.{number}.{name}": value for name, value in block.items()}
    for name, value in found.items():
        if name in target:
            fit(value, target[name])
    model.load_state_dict(target)


def fit(value: Tensor, place: Tensor) -> None:
    """Copy in place what has the same shape.

    Modulations differ in their number: those of the second attention, which come last, stay; a text stream that ends
    in the last block has a scale and a shift alone.
    """
    rows = len(place)
    if len(value) > rows:
        shift, scale = value.chunk(6)[:2]
        value = torch.cat([scale, shift])
    place[: len(value)].copy_(value)


def joint_block(single: State) -> State:
    """The weights of a single block under the names of a double one."""
    block: State = {}
    for kind in ("weight", "bias"):
        modulation = single[f"norm.linear.{kind}"].repeat(2, *[1] * (kind == "weight"))
        block |= {f"norm1.linear.{kind}": modulation, f"norm1_context.linear.{kind}": modulation}
        for letter in "qkv":
            projection = single[f"attn.to_{letter}.{kind}"]
            block |= {f"attn.to_{letter}.{kind}": projection, f"attn.add_{letter}_proj.{kind}": projection}
        for stream in ("ff", "ff_context"):
            block[f"{stream}.net.0.proj.{kind}"] = single[f"proj_mlp.{kind}"]
    for letter in "qk":
        gain = single[f"attn.norm_{letter}.weight"]
        block |= {f"attn.norm_{letter}.weight": gain, f"attn.norm_added_{letter}.weight": gain}
    width = len(single["proj_out.weight"])
    attention, mlp = single["proj_out.weight"].tensor_split([width], 1)
    for stream, after in (("ff", "to_out.0"), ("ff_context", "to_add_out")):
        block |= {f"attn.{after}.weight": attention, f"attn.{after}.bias": single["proj_out.bias"]}
        block |= {f"{stream}.net.2.weight": mlp, f"{stream}.net.2.bias": torch.zeros_like(single["proj_out.bias"])}
    return block
