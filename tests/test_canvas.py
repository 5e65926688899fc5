"""The canvas laws: layouts tile the plane exactly once, reduce and expand are exact inverses on their canvases."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ralu_cache.plane.canvas import TokenLayout, coarsen, patchify, pool, replicate, unpatchify
from tests.strategies import layouts


def image_for(layout: TokenLayout, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    rows, columns = layout.fine_grid
    generator = torch.Generator().manual_seed(seed)
    shape = (layout.batch, 3, rows * layout.patch, columns * layout.patch)
    return torch.randn(shape, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_pool_inverts_replicate_bit_for_bit(dtype: torch.dtype) -> None:
    image = torch.randn(2, 3, 5, 7).to(dtype)
    assert torch.equal(pool(replicate(image)), image)


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.sampled_from([1, 2, 3]))
def test_unpatchify_inverts_patchify(batch: int, rows: int, columns: int, patch: int) -> None:
    image = torch.randn(batch, 2, rows * patch, columns * patch)
    assert torch.equal(unpatchify(patchify(image, patch), rows, columns, patch), image)


def test_patchify_packs_as_flux_does() -> None:
    from diffusers import FluxPipeline

    image = torch.randn(2, 4, 6, 8)
    assert torch.equal(patchify(image, 2), FluxPipeline._pack_latents(image, 2, 4, 6, 8))


@given(layouts(), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_expand_then_reduce_is_the_identity(layout: TokenLayout, dtype: torch.dtype) -> None:
    tokens = torch.randn(layout.batch, layout.tokens, 3 * layout.patch**2).to(dtype)
    assert torch.equal(layout.reduce(layout.expand(tokens)), tokens)


@given(layouts())
def test_reduce_then_expand_is_the_projection_on_the_layouts_canvases(layout: TokenLayout) -> None:
    image = image_for(layout)
    projected = layout.project(image)
    assert torch.equal(layout.expand(layout.reduce(image)), projected)
    assert torch.equal(layout.project(projected), projected)


@given(layouts())
def test_tokens_tile_the_plane_exactly_once(layout: TokenLayout) -> None:
    """Painting each token with its own number covers every latent pixel with exactly one token, of the right area."""
    numbers = torch.arange(1, layout.tokens + 1).float().expand(layout.batch, -1)[..., None]
    painted = layout.expand(numbers.expand(-1, -1, layout.patch**2).contiguous())[:, 0]
    coarse = layout.coarse_index.shape[1]
    for sample in painted:
        values, areas = sample.unique(return_counts=True)
        assert values.tolist() == list(range(1, layout.tokens + 1))
        assert (areas[:coarse] == 4 * layout.patch**2).all() and (areas[coarse:] == layout.patch**2).all()


@given(layouts())
def test_positions_are_the_centres_of_what_the_tokens_paint(layout: TokenLayout) -> None:
    rows, columns = layout.fine_grid
    place = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")).float()
    place = place.repeat_interleave(layout.patch, 1).repeat_interleave(layout.patch, 2)
    centres = layout.reduce(place.expand(layout.batch, -1, -1, -1).contiguous())
    centres = centres.unflatten(-1, (2, -1)).mean(-1)
    torch.testing.assert_close(layout.positions(anchor=0.5), centres)
    assert layout.positions().dtype == torch.float32


def test_an_all_fine_layout_is_the_stock_order() -> None:
    layout = TokenLayout.fine(2, 3, 2, patch=2)
    image = image_for(layout)
    assert layout.all_fine and layout.shared
    assert torch.equal(layout.reduce(image), patchify(image, 2))
    assert torch.equal(layout.positions()[0, 1], torch.tensor([0.0, 1.0]))


@given(layouts(), st.integers(1, 3))
def test_a_repeated_layout_reduces_each_copy_alike(layout: TokenLayout, copies: int) -> None:
    image = image_for(layout)
    repeated = layout.repeat(copies * layout.batch)
    assert torch.equal(repeated.reduce(image.repeat(copies, 1, 1, 1)), layout.reduce(image).repeat(copies, 1, 1))


@given(layouts())
def test_a_sample_does_not_depend_on_its_batch(layout: TokenLayout) -> None:
    image = image_for(layout)
    alone = TokenLayout(layout.refined[-1:], layout.patch)
    assert torch.equal(alone.reduce(image[-1:]), layout.reduce(image)[-1:])


def test_shared_sees_different_samples() -> None:
    refined = torch.zeros(2, 2, 2, dtype=torch.bool)
    refined[:, 0, 0] = True
    assert TokenLayout(refined, 2).shared
    refined[1] = refined[1].flip(0)
    assert not TokenLayout(refined, 2).shared


def test_coarsen_keeps_block_means() -> None:
    image = torch.randn(1, 2, 4, 4)
    torch.testing.assert_close(pool(coarsen(image)), pool(image))


def test_errors_name_what_was_given() -> None:
    uneven = torch.tensor([[[True, False]], [[True, True]]])
    with pytest.raises(ValueError, match=r"equally many cells, got \[1, 2\]"):
        TokenLayout(uneven, 2)
    with pytest.raises(ValueError, match="bool"):
        TokenLayout(torch.zeros(1, 2, 2), 2)
    layout = TokenLayout.coarse(1, 2, 2, patch=2)
    with pytest.raises(ValueError, match=r"\(1, 8, 8\), got \(1, 3, 8, 6\)"):
        layout.reduce(torch.zeros(1, 3, 8, 6))
    with pytest.raises(ValueError, match=r"\(1, 4, d\)"):
        layout.expand(torch.zeros(1, 5, 12))
    with pytest.raises(ValueError, match="batch 3"):
        TokenLayout.coarse(2, 2, 2, patch=2).repeat(3)
