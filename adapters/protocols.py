"""What the library asks of a model family: `Adapter` of every one, and four parts, of which it implements what it can.

`Tokens` is what spatial stages need, `Blocks` what reuse of the residual of all blocks needs, `Layers` what row-sparse
recompute and layer caches need, `Cost` the FLOPs; `TextAttention` is one scorer's. Names no model class, and nothing
here knows what uses it. `call` is always the arguments of the denoiser's (or a ControlNet's) call by name, `grid` the
(rows, columns) of fine tokens, B the samples of a call, n its image tokens, d the model's width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ralu_cache.adapters.calls import LayoutCall, Setting
from ralu_cache.adapters.finding import Finding
from ralu_cache.adapters.sites import Site
from ralu_cache.history.attention import Rows
from ralu_cache.history.layer_cache import LayerCache
from ralu_cache.plane.budget import coarse_cost
from ralu_cache.plane.canvas import TokenLayout


class Removable(Protocol):
    """What was installed in a model, and can be taken out again."""

    def remove(self) -> None: ...


class Processors(Removable, Protocol):
    """Attention processors of ours; `refresh` puts them where others were set, or raises ValueError if it cannot."""

    def refresh(self) -> None: ...


class Measures(Removable, Protocol):
    """Watches one attention, to measure its tokens."""

    def keep(self, cache: LayerCache, samples: Tensor | None, text: int, inputs: Mapping[str, Any]) -> None:
        """Put the measures of the call that just ran into the cache. inputs: the attention's, by name."""


class Adapter(Protocol):
    """One model family: whose it is, and how its calls are read. Made for one denoiser; no state between calls."""

    family: str
    pipelines: tuple[str, ...]  # those that it serves, and the user's own subclasses of them; others are refused
    patch: int  # latent pixels per token side
    default_preset: str = "ralu-8x"  # what spatial="ralu" means, where the family has tokens
    guidance: str = "calls"  # the pipelines call with the prompt, then without; "stack": both at once, without first,
    # unless it is a "stack, prompt first"
    fill: int = 1  # the model pads image tokens to whole multiples of so many
    no_guidance: float = 1.0  # the scale at which their formula gives the prediction with the prompt
    takes: str = "hidden_states"  # the denoiser's argument that holds the latents
    others_first: bool = False  # in packed predictions, what stands beside the image's tokens comes before them
    ranked: bool = False  # its tokens may be divided among ranks, see `ranks.py`
    lacks: ClassVar[Mapping[str, str]] = {}  # parts that it can't have, by name, and why

    def __init__(self, transformer: Any) -> None: ...

    @classmethod
    @abstractmethod
    def matches(cls, transformer: nn.Module) -> bool:
        """True if this adapter knows the denoiser's class. A model that merely looks alike is another family."""

    def opened(self, call: Mapping[str, Any]) -> Mapping[str, Any]:
        """The model's own arguments -> the `call` of all other methods: `hidden_states` (B, ...) is one tensor."""
        return call

    def closed(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """The inverse: arguments by name for the model."""
        return dict(call)

    def opened_prediction(self, prediction: Any) -> Tensor:
        """What the model gives -> a tensor (B, ...), of the sign that the scheduler is given."""
        return prediction

    def closed_prediction(self, prediction: Tensor) -> Any:
        """The inverse."""
        return prediction

    @abstractmethod
    def conditioning(self, call: Mapping[str, Any]) -> tuple[dict[str, Tensor], tuple[Any, ...]]:
        """What tells one guidance branch from another: tensors by name, with an entry a sample or one for all, and the
        settings in which such calls may differ besides. Noise levels and latents are not among them."""

    @abstractmethod
    def select(self, call: Mapping[str, Any], samples: Tensor) -> dict[str, Any]:
        """The same call for some samples of its batch (k,); forget no batched argument, of the ControlNets' neither."""

    @abstractmethod
    def grid(self, call: Mapping[str, Any]) -> tuple[int, int]:
        """(rows, columns) of fine tokens of the image being made."""

    @abstractmethod
    def latents(self, call: Mapping[str, Any], grid: tuple[int, int]) -> Tensor:
        """The latent image (B, C, H, W) in the call, without conditioning channels or reference tokens."""

    def to_image(self, latents: Tensor, grid: tuple[int, int]) -> Tensor:
        """The pipeline's latents -> (B, C, H, W); images pass unchanged."""
        return latents

    def from_image(self, image: Tensor, like: Tensor) -> Tensor:
        """(B, C, H, W) -> the form of `like`: the exact inverse."""
        return image

    def prediction_image(self, prediction: Tensor, layout: TokenLayout) -> Tensor:
        """What the pipeline made of full predictions -> (B, C, H, W), coarse tokens' pixels replicated."""
        return self.to_image(prediction, layout.fine_grid)

    def frames(self, call: Mapping[str, Any]) -> int:
        """Of a video: its latent frames, which stand one below the other in grid and image; 1 for images."""
        return 1

    def check(self, call: Mapping[str, Any], setting: Setting) -> None:
        """Raise ValueError, with the value and what is accepted, for arguments that cannot be served right."""

    def landmarks(self, module: Any) -> list[nn.Module]:
        """The modules in which hooks are installed, `module` itself apart: where others stand in their places, as after
        LoRA, everything is hooked anew when a call begins."""
        return list(module.modules())[1:]


@runtime_checkable
class Tokens(Protocol):
    """What spatial stages need: the model on another set of tokens than the image's own."""

    @abstractmethod
    def shorten(
        self, call: Mapping[str, Any], layout: TokenLayout, tokens: Tensor, positions: Tensor
    ) -> dict[str, Any]:
        """The full call -> the call on the layout's `tokens` (B, n, C*p*p) at `positions` (B, n, 2)."""

    @abstractmethod
    def lengthen(self, prediction: Tensor, layout: TokenLayout) -> Tensor:
        """The short prediction -> the full one, coarse tokens replicated."""

    def install_positions(self, module: Any, active: Callable[[], LayoutCall | None]) -> list[RemovableHandle]:
        """Hooks that put the tokens of the active call where they belong, where its arguments alone cannot."""
        return []


@runtime_checkable
class TextAttention(Protocol):
    """What the scorer "text-attention" needs."""

    @abstractmethod
    def install_text_attention(
        self, transformer: Any, wanted: Callable[[], bool], keep: Callable[[Tensor], None]
    ) -> list[RemovableHandle]:
        """Hooks that give `keep` the share (B, n) of each image token's attention that falls on the text, if wanted."""


@runtime_checkable
class Blocks(Protocol):
    """What reuse of the residual of all blocks needs."""

    @abstractmethod
    def blocks(self, transformer: Any) -> list[nn.Module]:
        """The blocks, in the order in which they run, from ModuleLists of their own that the forward goes through."""

    @abstractmethod
    def head(self, transformer: Any) -> nn.Module:
        """The first module after the blocks; the image tokens are its first positional argument, or in it."""

    @abstractmethod
    def modulated_input(self, transformer: Any, call: Mapping[str, Any]) -> Tensor:
        """TeaCache's signal: the image tokens (B, n, d) as the first block's first norm modulates them."""

    def block_input(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """The image tokens (B, n, d) among a block's arguments."""
        return args[0] if args else kwargs["hidden_states"]  # gradient checkpointing goes by position

    def image_tokens(self, hidden: Tensor, image: int) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """What the first block or the head is given -> what is before its `image` tokens if there is more, the tokens,
        and what is behind them."""
        return None, hidden, None

    def replaces(self) -> bool:
        """True if what the head takes in is kept itself, not as a residual: where no tokens of the first block's are
        what the head would be given without the blocks. Then `head_part` gives a zero."""
        return False

    def head_part(self, entered: Tensor, count: int) -> Tensor:
        """Of a `block_input` the `count` tokens (B, count, d) that the head would be given without the blocks."""
        return entered

    def takes_all(self) -> bool:
        """True if `head_part` is all that the first block is given."""
        return True

    def without_control(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """The call without ControlNet samples: a cached residual holds them already."""
        return dict(call)


@runtime_checkable
class Probed(Blocks, Protocol):
    """Blocks of which nothing is known until a call of the denoiser has been probed."""

    @abstractmethod
    def found(self) -> Finding | None:
        """What the probe found."""

    @abstractmethod
    def keep(self, finding: Finding | None) -> None:
        """Know this from now on; None: nothing any more, for the denoiser is made of other parts."""


@runtime_checkable
class Layers(Blocks, Protocol):
    """What row-sparse recompute and layer caches need besides.

    Where the blocks are given rotary tables, `Tokens.install_positions` picks those of the call's `fresh` tokens.
    """

    @abstractmethod
    def size(self, call: Mapping[str, Any]) -> tuple[int, int, int]:
        """(samples, image tokens, text tokens) of a call."""

    @abstractmethod
    def with_block_input(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], hidden: Tensor) -> Any:
        """(args, kwargs) of a block with other image tokens."""

    @abstractmethod
    def sparse_control(self, call: Mapping[str, Any], tokens: Tensor) -> dict[str, Any]:
        """The call with ControlNet samples for the image tokens (k, m) alone, those that run through the blocks."""

    @abstractmethod
    def install_processors(self, transformer: Any, user: object, current: Callable[[], Rows | None]) -> Processors:
        """Attention processors that let `current()` bring some tokens alone, for one more user of them.

        Raises ValueError where they cannot.
        """

    @abstractmethod
    def sites(self, transformer: Any) -> list[tuple[Site, nn.Module]]:
        """The submodules of the blocks whose outputs can be cached. Raises ValueError for blocks of another make."""

    @abstractmethod
    def measures(
        self,
        attention: nn.Module,
        site: Site,
        names: Sequence[str],
        given: Callable[[], dict[Site, dict[str, Tensor]] | None],
    ) -> Measures:
        """What takes the measures `names` of an attention's tokens. given: where a call that is being recorded leaves
        what its projections gave, None for any other. Raises ValueError for a measure that can't be taken."""

    @abstractmethod
    def sparse_flops(self, call: Mapping[str, Any], fresh: int) -> float:
        """FLOPs of the call when only so many image tokens of each sample, and all text, run through the blocks."""

    @abstractmethod
    def replay_flops(self, call: Mapping[str, Any], image: Sequence[int] = (), text: Sequence[int] = ()) -> float:
        """FLOPs of the call when no attention runs, and each block's MLPs for so many image and text tokens."""


@runtime_checkable
class Cost(Protocol):
    """What a report needs to say what a run cost, in FLOPs; without it a report's are nan."""

    @abstractmethod
    def flops(self, call: Mapping[str, Any]) -> float:
        """FLOPs of one denoiser call with these arguments; PyTorch's counter must find exactly as many."""

    @abstractmethod
    def skipped_flops(self, call: Mapping[str, Any]) -> float:
        """FLOPs of the same call when all blocks are passed over."""

    def later(self, call: Mapping[str, Any]) -> Mapping[str, Any]:
        """The same call as the pipeline makes it in later steps, where those leave out what is done in the first; else
        the call itself."""
        return call

    def coarse_share(self, image: int, words: int, others: int) -> float:
        """At most what a call on a quarter of so many image tokens costs of one on all.

        words: tokens of the longest text. others: those that other text encoders add, at most.
        """
        return coarse_cost(image, words + others)
