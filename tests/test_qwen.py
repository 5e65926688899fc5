"""What is particular to Qwen-Image: rotary factors, norms under guidance, padded prompts, levels that end before zero.

What every family must do is in tests/adapter_conformance.py; its sibling pipelines are in tests/test_qwen_siblings.py.
"""

import math
from typing import Any

import diffusers
import pytest
import torch
from hypothesis import given
from torch import Tensor

from ralu_cache import RALU, Adaptive, TaylorSeer, ToCa, accelerate
from ralu_cache.adapters import find_adapter
from ralu_cache.adapters.layers import received
from ralu_cache.adapters.qwen import QwenAdapter, rotary_factors
from ralu_cache.engine.autoencoder import autoencoder_of
from ralu_cache.engine.run import Run
from ralu_cache.plane.canvas import TokenLayout, patchify, unpatchify
from ralu_cache.plane.schedule import solve_nt_dm, stage_sigmas
from ralu_cache.plane.token_map import corners, take, token_at
from tests.pipelines import HEIGHT, TOKENS, WIDTH, random_image
from tests.pipelines_qwen import make_qwen_pipeline, make_qwen_scheduler, make_qwen_transformer, qwen_pictures
from tests.strategies import layouts

PLAN = RALU(steps=(2, 2, 2))
GRID = HEIGHT // 4, WIDTH // 4


@pytest.fixture
def pipe() -> Any:
    return make_qwen_pipeline()


def latents(pipe: Any, batch: int = 2, **overrides: Any) -> Tensor:
    return pipe(**qwen_pictures(range(batch), **({"true_cfg_scale": 2.5} | overrides))).images


# ---- positions


@pytest.mark.parametrize("grid", [(6, 4), (5, 7), (1, 3)])
def test_whole_places_have_the_stock_factors_bit_for_bit(grid: tuple[int, int]) -> None:
    embed = make_qwen_transformer().pos_embed
    rows, columns = grid
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()
    centre = torch.tensor([rows - rows // 2, columns - columns // 2])
    stock, _ = embed([[(1, *grid)]], max_txt_seq_len=3, device=torch.device("cpu"))
    assert torch.equal(rotary_factors(embed, (places - centre)[None])[0], stock)


def test_between_them_the_angle_grows_with_the_place() -> None:
    embed = make_qwen_transformer(axes_dims_rope=(2, 2, 12)).pos_embed
    frame, row, *columns = rotary_factors(embed, torch.tensor([[[-2.75, 1.25]]]))[0, 0].unbind()
    rates = [10000 ** (-2 * i / 12) for i in range(6)]
    found = torch.stack([frame, row, *columns])
    angles = torch.tensor([0.0, -2.75, *(1.25 * rate for rate in rates)])
    torch.testing.assert_close(found, torch.polar(torch.ones(8), angles), atol=1e-6, rtol=0)


def test_coarse_steps_are_those_of_the_stock_pipeline_on_a_picture_of_half_the_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In their own frame coarse tokens sit where its tokens do, and guidance keeps the norms of whole tokens."""
    plain = {"use_dynamic_shifting": False, "shift_terminal": None}
    seen: list[Tensor] = []

    def look(pipe: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        seen.append(given["latents"])
        return given

    pipe = make_qwen_pipeline()
    pipe.scheduler = make_qwen_scheduler(**plain)
    plan = RALU(steps=(3, 1, 1))
    accelerate(pipe, spatial=plan)
    stepped, advance = [], Run.advance
    monkeypatch.setattr(Run, "advance", lambda *given: stepped.append(advance(*given)) or stepped[-1])
    latents(pipe)
    canvas = unpatchify(stepped[1], *GRID, 2)

    stock = make_qwen_pipeline()
    stock.scheduler = make_qwen_scheduler(**plain)
    sigmas = plan.stages(5, 1.0)[0].sigmas[:3]
    noise = [
        torch.randn(1, 1, 4, HEIGHT // 2, WIDTH // 2, generator=generator)[0, 0]
        for generator in qwen_pictures((0, 1))["generator"]
    ]
    half = patchify(2 * torch.nn.functional.avg_pool2d(torch.stack(noise), 2), 2)
    given = {"height": HEIGHT // 2, "width": WIDTH // 2, "latents": half, "callback_on_step_end": look}
    latents(stock, num_inference_steps=3, sigmas=list(sigmas), **given)
    expected = unpatchify(seen[-2], GRID[0] // 2, GRID[1] // 2, 2)
    for corner in (canvas[..., ::2, ::2], canvas[..., 1::2, 1::2]):
        torch.testing.assert_close(corner, expected, atol=1e-5, rtol=1e-5)


@given(layouts())
def test_what_is_lengthened_token_by_token_is_read_back(layout: TokenLayout) -> None:
    """And each place holds a whole token: the norms of places are those of tokens."""
    adapter = QwenAdapter(make_qwen_transformer())
    tokens = torch.randn(layout.batch, layout.tokens, 16)
    full = adapter.lengthen(tokens, layout)
    assert torch.equal(adapter.prediction_image(full, layout), layout.expand(tokens))
    assert torch.equal(take(full.norm(dim=-1), corners(layout)), tokens.norm(dim=-1))
    assert torch.equal(take(token_at(layout), corners(layout)), torch.arange(layout.tokens).expand(layout.batch, -1))


def test_frames_and_anchors(pipe: Any) -> None:
    with accelerate(pipe, spatial=PLAN):
        usual = latents(pipe)
    for options in ({"positions": "fine"}, {"anchor": "corner"}):
        with accelerate(pipe, spatial=RALU(steps=(2, 2, 2), **options)):
            other = latents(pipe)
        assert other.isfinite().all() and not torch.allclose(other, usual, atol=1e-4)


def test_odd_sizes_cache_without_stages(pipe: Any) -> None:
    handle = accelerate(pipe, temporal=TaylorSeer(interval=2))
    assert latents(pipe, width=100).isfinite().all()
    assert handle.report is not None and handle.report.size == (8, 25)
    accelerate(pipe, spatial=PLAN)
    with pytest.raises(ValueError, match="multiples of 8 for spatial stages, got 32x100"):
        latents(pipe, width=100)


# ---- prompts


@pytest.mark.parametrize(
    ("spatial", "temporal"),
    [
        (PLAN, None),
        (RALU(steps=(2, 2, 2), regions="text-attention"), None),
        (RALU(steps=(3, 3, 3)), Adaptive(interval=3, ratio=0.3, transition="inherit")),
        (RALU(steps=(3, 3, 3)), TaylorSeer(interval=2, per_layer=True)),
        (None, ToCa(interval=2, ratio=0.3, first=1, score="attention", text=False)),
    ],
)
def test_padding_of_a_prompt_does_not_count(pipe: Any, spatial: RALU | None, temporal: Any) -> None:
    """Picture 1 has prompts of 6 and 4 tokens, padded to 7."""
    accelerate(pipe, spatial=spatial, temporal=temporal)
    both = qwen_pictures((0, 1), true_cfg_scale=2.5)
    lengths = {"": 6, "negative_": 4}
    alone = qwen_pictures((1,), true_cfg_scale=2.5) | {
        f"{kind}prompt_embeds{part}": both[f"{kind}prompt_embeds{part}"][1:, :length]
        for kind, length in lengths.items()
        for part in ("", "_mask")
    }
    torch.testing.assert_close(pipe(**alone).images[0], pipe(**both).images[1], atol=1e-5, rtol=1e-5)


def test_attention_received_leaves_out_padding() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 9, 2, 4, generator=generator).unbind()
    mask = torch.tensor([[True, True, False]])
    kept = torch.tensor([0, 1, 3, 4, 5, 6, 7, 8])
    columns = received(query, key, 2, mask)
    assert columns[0, 2] == 0
    torch.testing.assert_close(columns[:, kept], received(query[:, kept], key[:, kept]))


def test_several_pictures_of_one_prompt(pipe: Any) -> None:
    for temporal in (None, Adaptive(interval=3, ratio=0.3)):
        handle = accelerate(pipe, spatial=PLAN, temporal=temporal)
        generators = qwen_pictures((0, 1))["generator"]
        images = latents(pipe, 1, num_images_per_prompt=2, generator=generators)
        assert images.shape == (2, TOKENS, 16) and handle.report is not None and handle.report.batch == 2
        torch.testing.assert_close(latents(pipe, 1)[0], images[0], atol=1e-5, rtol=1e-5)


# ---- caching by layers


@pytest.mark.parametrize("score", ["value", "attention"])
def test_layers_are_replayed_for_some_tokens(pipe: Any, score: str) -> None:
    handle = accelerate(pipe, spatial=RALU(steps=(3, 3, 3)), temporal=ToCa(2, 0.3, score=score, first=1))
    assert latents(pipe).isfinite().all() and handle.report is not None
    assert sum(stage.partial for stage in handle.report.stages) > 0 and handle.report.temporal_saved_flops > 0


# ---- schedule


def test_the_schedule_ends_where_the_stock_one_does(pipe: Any) -> None:
    """shift_terminal: the last step begins at 0.02; a plan of one stage is the stock schedule."""
    stock = make_qwen_scheduler()
    mu = 0.5 + (TOKENS - 256) * (0.9 - 0.5) / (8192 - 256)
    stock.set_timesteps(sigmas=torch.linspace(1, 1 / 8, 8).tolist(), mu=mu)
    for plan, steps in ((RALU(split=(1,), ends=(1.0,)), 8), (PLAN, 6), (RALU.paper("ralu-7x", shift="model"), 10)):
        handle = accelerate(pipe, spatial=plan)
        assert latents(pipe).isfinite().all() and handle.report is not None
        levels = [step.sigma for step in handle.report.steps]
        assert levels[-1] == pytest.approx(0.02) and len(levels) == steps
        if steps == 8:
            torch.testing.assert_close(torch.tensor([*levels, 0.0]), stock.sigmas, atol=1e-6, rtol=0)


def test_nt_dm_matches_the_models_own_shift(pipe: Any) -> None:
    mu = 0.5 + (TOKENS - 256) * (0.9 - 0.5) / (8192 - 256)
    plan = RALU.paper("ralu-7x", shift="model")
    handle = accelerate(pipe, spatial=plan)
    latents(pipe)
    shifts, z = solve_nt_dm((2, 3, 5), plan.ends, round(math.exp(mu), 4))
    coarse, mixed, _ = stage_sigmas((2, 3, 5), plan.ends, shifts, z)
    assert [step.sigma for step in handle.report.steps[:5]] == pytest.approx([*coarse[:-1], *mixed[:-1]])


def test_a_last_stage_that_starts_below_the_terminal_level_is_refused(pipe: Any) -> None:
    accelerate(pipe, spatial=RALU(steps=(2, 2, 2), ends=(0.5, 0.998, 1.0)))
    with pytest.raises(ValueError, match=r"between 0 and 0.005976, where the last stage starts, got 0.02; let the"):
        latents(pipe)


def test_the_default_plan(pipe: Any) -> None:
    handle = accelerate(pipe, spatial="ralu")
    latents(pipe)
    assert [stage.steps for stage in handle.report.stages] == [8, 4] and handle.report.spatial == "ralu-8x"


# ---- autoencoder


def test_the_autoencoder_decodes_and_encodes_as_the_pipelines_do(pipe: Any) -> None:
    autoencoder = autoencoder_of(pipe)
    assert autoencoder.decode is not None and autoencoder.encode is not None
    image = pipe(**qwen_pictures((0,), true_cfg_scale=2.5, output_type="pt")).images
    with torch.no_grad():
        decoded = autoencoder.decode(unpatchify(latents(pipe, 1), *GRID, 2))
        torch.testing.assert_close((decoded / 2 + 0.5).clamp(0, 1), image)
        picture = pipe.image_processor.preprocess(random_image())
        edit = make_qwen_pipeline(diffusers.QwenImageEditPipeline, processor=None)
        encoded = edit._encode_vae_image(picture[:, :, None], None)[:, :, 0]
        torch.testing.assert_close(autoencoder.encode(picture), encoded)


def test_regions_and_lifts_that_need_the_autoencoder(pipe: Any) -> None:
    handle = accelerate(pipe, spatial=RALU(steps=(2, 2, 2), regions="sobel", lift="pixel"))
    assert latents(pipe).isfinite().all() and handle.report is not None and not handle.report.notices[1:]


# ---- what is refused


def test_layered_models_are_refused() -> None:
    with pytest.raises(TypeError, match=r"QwenImageLayeredPipeline .* is not supported: .*; ralu_cache .* QwenImageP"):
        accelerate(make_qwen_pipeline(diffusers.QwenImageLayeredPipeline, processor=None), spatial="ralu")
    pipe = make_qwen_pipeline(transformer={"use_layer3d_rope": True})
    with pytest.raises(TypeError, match="is not supported"):
        find_adapter(pipe)
