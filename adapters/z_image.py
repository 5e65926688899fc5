"""Z-Image: lists of latents (C, 1, H, W) and of captions, one sequence of image and text, padded to whole multiples.

A layout's tokens travel as a *ribbon*, an image of one row of patches (C, 1, p, p n), through the stock embedding,
blocks and output; for the call the rotary factors are replaced by those of the tokens' own positions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from diffusers import ZImageTransformer2DModel
from diffusers.models.transformers.transformer_z_image import SEQ_MULTI_OF
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from ralu_cache.adapters.base import TransformerAdapter
from ralu_cache.adapters.calls import LayoutCall, Setting
from ralu_cache.adapters.counted import row_flops
from ralu_cache.adapters.rope_z_image import placed_ropes
from ralu_cache.adapters.sparse_z_image import ZImageSparseProcessor
from ralu_cache.plane.canvas import TokenLayout, patchify, unpatchify
from ralu_cache.report.flops import BlockCost, Part, StackCost


class ZImageAdapter(TransformerAdapter):
    """`ZImageTransformer2DModel` under text-to-image, img2img and inpainting.

    The model gives the velocity with its sign turned, the pipelines turn it back. Guidance is one call on the stack
    [positive, negative]. The blocks are those that refine the image alone and those of image and text; padding and text
    stand behind the image's tokens.
    """

    family = "z-image"
    pipelines = ("ZImagePipeline", "ZImageImg2ImgPipeline", "ZImageInpaintPipeline")
    guidance = "stack, prompt first"
    no_guidance = 0.0
    fill = SEQ_MULTI_OF
    processor = ZImageSparseProcessor
    lacks: ClassVar[Mapping[str, str]] = {
        "text attention": "image, padding and text are one sequence, and attention is not told where the image ends"
    }

    def __init__(self, transformer: Any) -> None:
        sizes = transformer.config.all_patch_size, transformer.config.all_f_patch_size
        if (2, 1) not in zip(*sizes, strict=True):
            raise ValueError(f"patch sizes {sizes} are not supported: expected 2, and 1 for frames, among them")
        self.patch, self.channels = 2, transformer.in_channels
        self.cost, self._caption = _cost(transformer), row_flops(transformer.cap_embedder)
        self._out = row_flops(self.head(transformer).linear)
        self._padded: Any = WeakTensorKeyDictionary()

    @classmethod
    def matches(cls, transformer: nn.Module) -> bool:
        return isinstance(transformer, ZImageTransformer2DModel)

    def opened(self, call: Mapping[str, Any]) -> Mapping[str, Any]:
        images, *_ = given = call["x"], call["t"], call["cap_feats"]
        shapes = {tuple(image.shape) if isinstance(image, Tensor) else "a list" for image in images}
        if len(shapes) > 1 or "a list" in shapes or len(images[0]) != self.channels:
            raise ValueError(f"x of shapes {sorted(map(str, shapes))} is not supported: expected latents of one size")
        rest = {name: value for name, value in call.items() if name not in ("x", "t", "cap_feats")}
        return {"hidden_states": torch.stack(tuple(images)), "timestep": given[1], "captions": list(given[2]), **rest}

    def closed(self, call: Mapping[str, Any]) -> dict[str, Any]:
        rest = {name: value for name, value in call.items() if name not in ("hidden_states", "timestep", "captions")}
        return {"x": list(call["hidden_states"]), "t": call["timestep"], "cap_feats": call["captions"], **rest}

    def opened_prediction(self, prediction: Any) -> Tensor:
        return -torch.stack(tuple(prediction))

    def closed_prediction(self, prediction: Tensor) -> Any:
        return list(-prediction)

    def conditioning(self, call: Mapping[str, Any]) -> tuple[dict[str, Tensor], tuple[Any, ...]]:
        """The captions as one tensor, which is made once while the first of them lives."""
        captions = call["captions"]
        key = tuple((id(caption), caption._version) for caption in captions if not caption.is_inference())
        known, padded = self._padded.get(captions[0], (None, None))
        if known != key or len(key) < len(captions):
            padded = pad_sequence(captions, batch_first=True, padding_value=torch.nan).nan_to_num(nan=0.0)
            self._padded[captions[0]] = key, padded
        return {"captions": padded}, ()

    def select(self, call: Mapping[str, Any], samples: Tensor) -> dict[str, Any]:
        picked = {name: call[name][samples] for name in ("hidden_states", "timestep")}
        return {**call, **picked, "captions": [call["captions"][sample] for sample in samples.tolist()]}

    def check(self, call: Mapping[str, Any], setting: Setting) -> None:
        for name in ("controlnet_block_samples", "siglip_feats", "image_noise_mask"):
            if call.get(name) is not None:
                raise ValueError(f"{name} is not supported for Z-Image: use a pipeline without, or handle.disable()")
        lengths = set(_caption_lengths(call))
        if setting.caches not in (None, "stack") and len(lengths) > 1:
            raise ValueError(
                f"captions of {sorted(lengths)} tokens, padding included, in one call are not supported with what "
                "keeps layers or some tokens; use prompts of like lengths, no guidance, or a policy that reuses the "
                "residual of all blocks (teacache, seacache, taylorseer)"
            )

    def grid(self, call: Mapping[str, Any]) -> tuple[int, int]:
        height, width = call["hidden_states"].shape[-2:]
        return height // self.patch, width // self.patch

    def latents(self, call: Mapping[str, Any], grid: tuple[int, int]) -> Tensor:
        return self.to_image(call["hidden_states"], grid)

    def to_image(self, latents: Tensor, grid: tuple[int, int]) -> Tensor:
        return latents if latents.ndim == 4 else latents[:, :, 0]

    def from_image(self, image: Tensor, like: Tensor) -> Tensor:
        return image if like.ndim == 4 else image[:, :, None]

    def shorten(
        self, call: Mapping[str, Any], layout: TokenLayout, tokens: Tensor, positions: Tensor
    ) -> dict[str, Any]:
        return {**call, "hidden_states": unpatchify(tokens, 1, tokens.shape[1], self.patch)[:, :, None]}

    def lengthen(self, prediction: Tensor, layout: TokenLayout) -> Tensor:
        return layout.expand(patchify(prediction[:, :, 0], self.patch))[:, :, None]

    def install_positions(self, module: Any, active: Callable[[], LayoutCall | None]) -> list[RemovableHandle]:
        return placed_ropes(module, self._embedder(module), active)

    def _embedder(self, transformer: Any) -> nn.Module:
        return transformer.all_x_embedder[f"{self.patch}-1"]

    def landmarks(self, module: Any) -> list[nn.Module]:
        return [*self.blocks(module), self.head(module), self._embedder(module)]

    def blocks(self, transformer: Any) -> list[nn.Module]:
        return [*transformer.noise_refiner, *transformer.layers]

    def head(self, transformer: Any) -> nn.Module:
        return transformer.all_final_layer[f"{self.patch}-1"]

    def block_input(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        return args[0]

    def image_tokens(self, hidden: Tensor, image: int) -> tuple[Tensor | None, Tensor, Tensor | None]:
        return None, hidden[:, :image], hidden[:, image:]

    def modulated_input(self, transformer: Any, call: Mapping[str, Any]) -> Tensor:
        tokens = patchify(call["hidden_states"][:, :, 0], self.patch).unflatten(-1, (self.channels, -1))
        hidden = self._embedder(transformer)(tokens.transpose(-1, -2).flatten(-2))  # places first, as the model packs
        levels = transformer.t_embedder(call["timestep"] * transformer.t_scale).type_as(hidden)
        block = transformer.noise_refiner[0]
        scale, *_ = block.adaLN_modulation(levels)[:, None].chunk(4, -1)
        return block.attention_norm1(hidden) * (1 + scale)

    def size(self, call: Mapping[str, Any]) -> tuple[int, int, int]:
        rows, columns = self.grid(call)
        return len(call["hidden_states"]), _padded(rows * columns), max(_caption_lengths(call))

    def sparse_flops(self, call: Mapping[str, Any], fresh: int) -> float:
        """Without the image's padding, which the head isn't given then."""
        rows, columns = self.grid(call)
        batch, padded, _ = self.size(call)
        return super().sparse_flops(call, fresh) - batch * (padded - rows * columns) * self._out

    def besides(self, call: Mapping[str, Any]) -> int:
        """Captions are embedded one behind the other, each as long as it is."""
        return self._caption * sum(_caption_lengths(call))


def _padded(tokens: int) -> int:
    return -(-tokens // SEQ_MULTI_OF) * SEQ_MULTI_OF


def _caption_lengths(call: Mapping[str, Any]) -> list[int]:
    """Of each sample, padding included."""
    return [_padded(len(caption)) for caption in call["captions"]]


def _cost(transformer: Any) -> StackCost:
    """Of image tokens and caption tokens that are padded; to embed captions apart."""
    width, head = transformer.dim, transformer.all_final_layer["2-1"]
    refined = sum(row_flops(block.attention, block.feed_forward) for block in transformer.context_refiner)
    outside = Part(
        image=row_flops(transformer.all_x_embedder["2-1"], head.linear),
        text=refined + row_flops(head.linear),
        sample=row_flops(transformer.t_embedder, head.adaLN_modulation),
        among_text=width * len(transformer.context_refiner),
    )
    blocks: list[BlockCost] = []
    for block in (*transformer.noise_refiner, *transformer.layers):
        around, mlp = row_flops(block.attention), row_flops(block.feed_forward)
        alone = len(blocks) < len(transformer.noise_refiner)
        attention = Part(image=around, among_image=width) if alone else Part(around, around + mlp, joint=width)
        blocks.append(BlockCost(attention, Part(image=mlp), Part(sample=row_flops(block.adaLN_modulation))))
    return StackCost(outside, tuple(blocks))
