"""Transitions: the noise has the stated covariance and variance, and the seed decides it all."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ralu_cache.plane.canvas import TokenLayout, coarsen, pool, replicate
from ralu_cache.plane.schedule import renoised_sigma
from ralu_cache.plane.transition import (
    coarse_noise,
    detail,
    level_ratio,
    make_lift,
    renoise_paper,
    renoise_rewind,
    seeded_noise,
)

SIDE = 256
TOLERANCE = 0.03  # of a variance over 2 x 128 x 128 blocks: standard error 0.008


def white(seed: int, channels: int = 2) -> Tensor:
    return torch.randn(1, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def block_covariance(x: Tensor) -> Tensor:
    """4 x 4 covariance of the pixels of 2x2 blocks."""
    blocks = x.unfold(2, 2, 2).unfold(3, 2, 2).reshape(-1, 4)
    return blocks.T @ blocks / len(blocks)


def masks(was_fine: str, now_fine: str) -> tuple[Tensor, Tensor]:
    """(split, fine before) pixel masks of transitions between whole planes."""
    full = torch.ones(1, 1, SIDE, SIDE, dtype=torch.bool)
    was = full if was_fine == "fine" else ~full
    now = full if now_fine == "fine" else ~full
    return now & ~was, was


J = torch.ones(4, 4)
EYE = torch.eye(4)


@pytest.mark.parametrize("start", ["pooled", "subsampled"])
def test_coarse_noise_is_white_on_its_grid(start: str) -> None:
    noise = coarse_noise(white(0), start)
    assert torch.equal(coarsen(noise), noise)
    low = pool(noise)
    assert abs(low.var().item() - 1) < TOLERANCE
    torch.testing.assert_close(block_covariance(low), EYE, atol=2 * TOLERANCE, rtol=0)


def test_detail_has_zero_block_mean_and_covariance_eye_minus_quarter() -> None:
    d = detail(white(1))
    assert pool(d).abs().max() < 1e-6
    torch.testing.assert_close(block_covariance(d), EYE - J / 4, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("z", [2.0, 3.0, 6.3169])
def test_papers_noise_has_the_stated_covariance(z: float) -> None:
    sigma = 0.7
    sigma_next = renoised_sigma(sigma, z)
    assert level_ratio(sigma, sigma_next) == pytest.approx(z)
    split, was = masks("coarse", "fine")
    z_noise = renoise_paper(torch.zeros(1, 2, SIDE, SIDE), sigma, sigma_next, split, was, white(2)) / sigma_next
    torch.testing.assert_close(block_covariance(z_noise), EYE - J / z**2, atol=TOLERANCE, rtol=0)


def states(sigma: float, grid: str, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(noise of the seed, clean image, state at sigma, velocity) on a plane of coarse or fine tokens."""
    noise = white(seed)
    clean = coarsen(white(seed + 1)) if grid == "coarse" else white(seed + 1)
    own = coarse_noise(noise, "pooled") if grid == "coarse" else noise
    return noise, clean, (1 - sigma) * clean + sigma * own, own - clean


@pytest.mark.parametrize("kind", ["paper", "rewind"])
@pytest.mark.parametrize(("was", "now"), [("coarse", "fine"), ("coarse", "coarse"), ("fine", "fine")])
@pytest.mark.parametrize("z", [2.0, 6.3169])
def test_after_a_transition_noise_is_white_with_the_levels_variance(kind: str, was: str, now: str, z: float) -> None:
    sigma = 0.6
    sigma_next = renoised_sigma(sigma, z)
    noise, clean, x, v = states(sigma, was, 10)
    split, fine = masks(was, now)
    if kind == "paper":
        after = renoise_paper(x, sigma, sigma_next, split, fine, white(12))
    else:
        after = renoise_rewind(x, v, sigma, sigma_next, split, noise, make_lift("nearest"))
    residual = (after - (1 - sigma_next) * clean) / sigma_next
    covariance = block_covariance(residual if now == "fine" else pool(residual))
    torch.testing.assert_close(covariance, EYE, atol=2 * TOLERANCE, rtol=0)
    if now == "coarse":
        torch.testing.assert_close(coarsen(after), after, atol=1e-5, rtol=0)


@given(st.floats(0.05, 0.9), st.floats(2.0, 8.0), st.integers(0, 100))
@settings(max_examples=25)
def test_rewinding_an_exact_trajectory_lands_on_it(sigma: float, z: float, seed: int) -> None:
    """With a perfect velocity, tokens that keep their grid return exactly to their own earlier state."""
    sigma_next = renoised_sigma(sigma, z)
    noise, clean, x, v = states(sigma, "fine", seed)
    split, _ = masks("fine", "fine")
    after = renoise_rewind(x, v, sigma, sigma_next, split, noise, make_lift("nearest"))
    torch.testing.assert_close(after, (1 - sigma_next) * clean + sigma_next * noise, atol=1e-4, rtol=1e-4)


def test_rewind_gives_a_refined_token_the_seeds_own_noise() -> None:
    noise, clean, x, v = states(0.6, "coarse", 20)
    split, _ = masks("coarse", "fine")
    after = renoise_rewind(x, v, 0.6, 0.8, split, noise, make_lift("nearest"))
    torch.testing.assert_close(after, 0.2 * clean + 0.8 * noise, atol=1e-4, rtol=1e-4)


def test_paper_and_rewind_agree_on_refined_tokens_at_z_2() -> None:
    """methods.md: with Z = 2 the level's scale equals the rewind's, so only the detail's draw differs."""
    sigma, sigma_next = 0.6, renoised_sigma(0.6, 2.0)
    noise, _, x, v = states(sigma, "coarse", 30)
    split, fine = masks("coarse", "fine")
    paper = renoise_paper(x, sigma, sigma_next, split, fine, noise)
    torch.testing.assert_close(
        renoise_rewind(x, v, sigma, sigma_next, split, noise, make_lift("nearest")), paper, atol=1e-4, rtol=1e-4
    )


def test_mixed_layouts_change_only_what_is_refined() -> None:
    refined = torch.zeros(1, SIDE // 4, SIDE // 4, dtype=torch.bool)
    refined[:, ::2] = True
    layout = TokenLayout(refined, 2)
    noise, _, x, v = states(0.6, "coarse", 40)
    after = renoise_rewind(x, v, 0.6, 0.8, layout.fine_pixels, noise, make_lift("nearest"))
    assert torch.equal(layout.project(after), after)
    kept = ~layout.fine_pixels.expand_as(after)
    assert torch.equal(after[kept], (x + 0.2 * v)[kept]) or torch.allclose(after[kept], (x + 0.2 * v)[kept])


def test_the_papers_noise_needs_z_of_at_least_2() -> None:
    split, fine = masks("coarse", "fine")
    with pytest.raises(ValueError, match=r"Z >= 2.*Z = 1\.5"):
        renoise_paper(white(0), 0.5, renoised_sigma(0.5, 1.5), split, fine, white(1))


def test_seeded_noise_is_per_sample_and_leaves_the_global_generator_alone() -> None:
    batch = torch.randn(3, 2, 8, 8)
    before = torch.get_rng_state()
    first = seeded_noise(batch, "a")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, seeded_noise(batch, "a"))
    assert torch.equal(first[1:2], seeded_noise(batch[1:2], "a"))
    assert not torch.equal(first, seeded_noise(batch, "b"))
    assert not torch.equal(first[0], first[1])


def test_lifts() -> None:
    coarse = coarsen(torch.randn(1, 3, 16, 16))
    assert torch.equal(make_lift("nearest")(coarse), coarse)
    assert make_lift("bicubic")(coarse).shape == coarse.shape
    seen = []

    def decode(latents: Tensor) -> Tensor:
        seen.append(latents.shape[-1])
        return replicate(latents)

    lifted = make_lift("pixel", decode, pool)(coarse)
    assert seen == [8] and lifted.shape == coarse.shape
    flat = torch.full((1, 3, 16, 16), 0.7)
    for name in ("bicubic", "pixel"):
        torch.testing.assert_close(make_lift(name, replicate, pool)(flat), flat)
    with pytest.raises(ValueError, match="unknown lift 'cubic'; accepted: nearest, bicubic, pixel"):
        make_lift("cubic")
    with pytest.raises(ValueError, match="autoencoder"):
        make_lift("pixel")
