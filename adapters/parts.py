"""Which parts of the protocol a family implements, what each is good for, and the refusal of what it lacks."""

from __future__ import annotations

from collections.abc import Mapping

from ralu_cache.adapters.protocols import Adapter, Blocks, Cost, Layers, TextAttention, Tokens

PARTS: Mapping[str, tuple[type, str]] = {
    "tokens": (Tokens, "spatial stages, with scorers such as 'latent-gradient'"),
    "text attention": (TextAttention, "the scorer 'text-attention'"),
    "blocks": (Blocks, "temporal policies that reuse the residual of all blocks (teacache, seacache, taylorseer)"),
    "layers": (Layers, "row-sparse recompute and layer caches (adaptive, toca, taylorseer with per_layer=True)"),
    "cost": (Cost, "FLOPs in reports, and speedup="),
}


def parts_of(family: type[Adapter]) -> list[str]:
    """Names of the parts that a family implements."""
    return [name for name, (protocol, _) in PARTS.items() if issubclass(family, protocol)]


def need(family: type[Adapter], part: str, asked: str) -> None:
    """Raises ValueError if a family lacks a part that `asked` needs: whose it is, what is missing, and what works."""
    has = parts_of(family)
    if part in has:
        return
    works = ["guidance=", *(PARTS[name][1] for name in has)]
    reason = family.lacks.get(part, f"its adapter {family.__name__} does not implement {PARTS[part][0].__name__}")
    raise ValueError(
        f"{asked} is not supported for the family {family.family}, which lacks {part}: {reason}; what works with it: "
        + "; ".join(works)
    )
