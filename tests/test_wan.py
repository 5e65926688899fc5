"""What is particular to Wan: frames, regions over time, image-to-video, two transformers, time steps of tokens.

What every family must do is in tests/adapter_conformance.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from benchmarks.counted import Counted
from ralu_cache import RALU, Adaptive, Scorer, SeaCache, TaylorSeer, ToCa, accelerate
from ralu_cache.adapters.calls import LayoutCall
from ralu_cache.adapters.wan import rotary_tables
from ralu_cache.engine.autoencoder import autoencoder_of
from ralu_cache.plane.canvas import TokenLayout, join_frames, split_frames
from ralu_cache.plane.regions import Evidence, get_scorer, share_over_time
from ralu_cache.plane.transition import make_lift
from ralu_cache.temporal.seacache import plane_gain, spectral_filter
from tests.adapter_conformance import (
    Family,
    check_a_permuted_ribbon_is_the_stock_forward,
    check_flops_are_those_that_a_counter_counts,
)
from tests.pipelines import make_pipeline, pictures
from tests.test_caching import Scripted
from tests.wan_pipelines import (
    COLUMNS,
    FRAMES,
    ROWS,
    block,
    make_wan_image_pipeline,
    make_wan_pipeline,
    make_wan_transformer,
    make_wan_vae,
    videos,
)

PLAN = RALU(steps=(2, 2, 2))
CELLS = ROWS * COLUMNS // 4  # of a frame


@pytest.fixture
def pipe() -> Any:
    return make_wan_pipeline()


def latents(pipe: Any, batch: int = 2, **overrides: Any) -> Tensor:
    """(B, 16, F, H, W)."""
    return pipe(**videos(range(batch), **({"guidance_scale": 2.5} | overrides))).frames


def animate(pipe: Any, samples: tuple[int, ...] = (0, 1), **overrides: Any) -> Tensor:
    """Image-to-video from one picture."""
    return pipe(**videos(samples, 512, image=block(), **overrides)).frames


# ---- frames


def test_a_video_is_its_frames_one_below_the_other() -> None:
    video = torch.arange(2 * 3 * FRAMES * 4 * 2.0).view(2, 3, FRAMES, 4, 2)
    tall = video.flatten(2, 3)
    assert torch.equal(split_frames(tall, FRAMES), video.transpose(1, 2).flatten(0, 1))
    assert torch.equal(join_frames(split_frames(tall, FRAMES), FRAMES), tall)
    layout = TokenLayout(torch.eye(6, dtype=torch.bool)[:, [0]][None], 1, frames=FRAMES)
    assert layout.token_frames().tolist() == [[0, 1, 1, 2, 2, 0, 0, 0, 0]]
    with pytest.raises(ValueError, match="6 rows of cells do not divide into 4 frames"):
        TokenLayout(layout.refined, 1, frames=4)


@pytest.mark.parametrize("frames", [1, FRAMES])
def test_whole_positions_are_the_stock_table_bit_for_bit(frames: int) -> None:
    rope = make_wan_transformer().rope
    layout = TokenLayout.fine(1, frames * ROWS // 2, COLUMNS // 2, 2, frames=frames)
    extent = frames * ROWS, COLUMNS
    found = rotary_tables(rope, LayoutCall(layout, layout.positions(), {}, {}, extent))
    for table, expected in zip(found, rope(torch.zeros(1, 16, frames, 2 * ROWS, 2 * COLUMNS)), strict=True):
        assert torch.equal(table, expected)


@pytest.mark.parametrize("options", [{}, {"positions": "fine"}, {"anchor": "corner"}])
def test_every_frame_has_the_same_positions(options: dict[str, str], pipe: Any) -> None:
    """Coarse and fine tokens alike, at the frame's borders too: only the frame's own number differs."""
    tables: list[Any] = []
    accelerate(pipe, spatial=RALU(steps=(2, 2, 2), regions="even", **options))
    pipe.transformer.rope.register_forward_hook(lambda rope, args, out: tables.append(out[0]))
    latents(pipe, 1)
    kept = pipe.transformer.rope.t_dim
    for table in (tables[0], tables[4]):  # coarse, mixed
        count = table.shape[1]
        parts = [slice(0, count)] if count == FRAMES * CELLS else [slice(0, 7 * FRAMES), slice(7 * FRAMES, count)]
        for part in parts:
            frames = table[0, part, 0, kept:].unflatten(0, (FRAMES, -1))
            assert (frames == frames[:1]).all()
            assert len(table[0, part, 0, :kept].unique(dim=0)) == FRAMES


def test_a_coarse_step_is_the_stock_forward_on_the_half_size_video(pipe: Any) -> None:
    """In their own frame, coarse tokens sit where those of a video of half the size would."""
    outputs: list[Tensor] = []
    accelerate(pipe, spatial=RALU(steps=(1, 1, 1)))
    pipe.transformer.register_forward_hook(lambda net, args, out: outputs.append(out[0]))
    latents(pipe)
    noise = torch.stack(
        [torch.randn(16, FRAMES, 2 * ROWS, 2 * COLUMNS, generator=g) for g in videos((0, 1))["generator"]]
    )
    halves: list[Tensor] = []
    stock = make_wan_pipeline()
    stock.transformer.register_forward_hook(lambda net, args, out: halves.append(out[0]))
    small = 2 * torch.nn.functional.avg_pool3d(noise, (1, 2, 2))
    with torch.no_grad():
        stock.transformer(small, torch.tensor([1000.0, 1000.0]), videos((0, 1))["prompt_embeds"], return_dict=False)
    for output in (outputs[0][..., ::2, ::2], outputs[0][..., 1::2, 1::2]):  # replicated pixel by pixel
        torch.testing.assert_close(output, halves[0], atol=1e-5, rtol=1e-5)


def test_nothing_looks_across_the_border_of_two_frames() -> None:
    torch.manual_seed(0)
    tall = torch.randn(2, 4, FRAMES * 8, 12)
    alone = split_frames(tall, FRAMES)
    lifted = make_lift("bicubic", frames=FRAMES)(tall)
    assert torch.equal(split_frames(lifted, FRAMES), make_lift("bicubic")(alone))
    gain = plane_gain(8, 12, 0.5)
    filtered = spectral_filter(tall.unflatten(2, (FRAMES, -1)), gain)
    torch.testing.assert_close(filtered.flatten(2, 3), join_frames(spectral_filter(alone, gain), FRAMES))


def test_seacache_and_scorers_see_frames(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Evidence] = []
    filtered: list[tuple[int, ...]] = []

    def spy(evidence: Evidence) -> Tensor:
        seen.append(evidence)
        return get_scorer("latent-gradient").score(evidence)

    def watch(image: Tensor, gain: Tensor) -> Tensor:
        filtered.append(tuple(image.shape))
        return spectral_filter(image, gain)

    monkeypatch.setattr("ralu_cache.temporal.seacache.spectral_filter", watch)
    for policy in (SeaCache(), SeaCache(signal="plane")):
        accelerate(pipe, spatial=RALU(steps=(2, 2, 2), regions=Scorer("spy", spy)), temporal=policy)
        latents(pipe)
    (evidence, _), shape = seen, (2 * FRAMES, 16, 2 * ROWS, 2 * COLUMNS)
    assert evidence.frames == FRAMES
    assert {tuple(x.shape) for x in (evidence.x0, evidence.velocity, *evidence.history)} == {shape}
    assert set(filtered) == {(2, 16, FRAMES, 2 * ROWS, 2 * COLUMNS), (2, 24, FRAMES, ROWS, COLUMNS)}


def test_regions_per_frame_and_shared_over_time(pipe: Any) -> None:
    masks = {}
    for kind in ("frame", "shared"):
        handle = accelerate(pipe, spatial=RALU(steps=(2, 2, 2), regions_over_time=kind))
        assert latents(pipe).isfinite().all()
        assert handle.report is not None
        masks[kind] = handle.report.regions[0].reshape(2, FRAMES, -1)
        assert (masks[kind].sum(-1) == round(0.3 * CELLS)).all()
    assert (masks["shared"] == masks["shared"][:, :1]).all()
    assert (masks["frame"] != masks["frame"][:, :1]).any()
    scores = torch.tensor([0.0, 2.0, 1.0, 5.0]).view(4, 1, 1)
    assert share_over_time(scores, 2).flatten().tolist() == [1, 1, 3, 3]


def test_regions_over_time_is_checked(pipe: Any) -> None:
    with pytest.raises(ValueError, match="regions_over_time must be one of 'frame', 'shared', got 'every'"):
        RALU(regions_over_time="every")
    images = make_pipeline()
    accelerate(images, spatial=RALU(steps=(2, 2, 2), regions_over_time="shared"))
    with pytest.raises(ValueError, match="regions_over_time='shared' is for videos"):
        images(**pictures((0,)))


def test_one_frame_is_an_image(pipe: Any) -> None:
    handle = accelerate(pipe, spatial=PLAN, temporal="seacache")
    assert latents(pipe, num_frames=1).shape == (2, 16, 1, 2 * ROWS, 2 * COLUMNS)
    assert handle.report is not None and handle.report.size == (ROWS, COLUMNS)


@pytest.mark.parametrize("spatial", ["ralu", RALU(steps=(2, 2, 2), noise="paper", shifts="nt-dm", shift="model")])
def test_presets_and_the_models_own_shift(pipe: Any, spatial: Any) -> None:
    handle = accelerate(pipe, spatial=spatial)
    assert latents(pipe, num_inference_steps=18).isfinite().all()
    assert handle.report is not None and len(handle.report.steps) == (10 if spatial == "ralu" else 6), "ralu-7x"


# ---- the autoencoder


def test_the_published_plan_decodes_whole_videos(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[tuple[int, ...]] = []
    stock = pipe.vae.decode
    monkeypatch.setattr(pipe.vae, "decode", lambda x, **call: decoded.append(tuple(x.shape)) or stock(x, **call))
    handle = accelerate(pipe, spatial=RALU.paper("ralu-7x"))
    assert latents(pipe, num_inference_steps=10).isfinite().all()
    assert decoded == [(1, 16, FRAMES, ROWS, COLUMNS)] * 2, "the pooled latents, one video after the other"
    assert handle.report is not None
    assert (handle.report.regions[0].reshape(2 * FRAMES, -1).sum(-1) == 1).all(), "a tenth of ten cells"


def test_the_video_decoder_shows_one_moment_of_each_latent_frame(pipe: Any) -> None:
    video = torch.randn(1, 16, FRAMES, 4, 6, generator=torch.Generator().manual_seed(0))
    mean, deviation = (
        torch.tensor(pipe.vae.config[f"latents_{name}"]).view(1, -1, 1, 1, 1) for name in ("mean", "std")
    )
    decode = autoencoder_of(pipe).decode
    assert decode is not None
    with torch.no_grad():
        whole = pipe.vae.decode(video * deviation + mean).sample[0].transpose(0, 1)
        torch.testing.assert_close(decode(video[0].transpose(0, 1)), whole[[0, 4, 8]])
        assert decode(video[0, :, :1].transpose(0, 1)).shape == (1, 3, 32, 48)


# ---- image-to-video


IMAGES = [
    make_wan_image_pipeline,
    partial(make_wan_image_pipeline, image_dim=None, added_kv_proj_dim=None),  # as 2.2 has it
]


@pytest.mark.parametrize("make", IMAGES, ids=["2.1", "2.2"])
def test_image_to_video(make: Any) -> None:
    pipe = make()
    stock = animate(pipe)
    with accelerate(pipe):
        assert torch.equal(animate(pipe), stock)
    for policy in (None, TaylorSeer(interval=2, transition="inherit"), Adaptive(interval=3, ratio=0.3)):
        with accelerate(pipe, spatial=PLAN, temporal=policy) as handle:
            together, alone = animate(pipe, (0, 1, 2)), animate(pipe, (2,))
            assert handle.report is not None
            torch.testing.assert_close(alone[0], together[2], atol=1e-5, rtol=1e-5)
            served = sum(stage.reused + stage.partial for stage in handle.report.stages)
            assert (served > 0) == (policy is not None)
    assert torch.equal(animate(pipe), stock)


def test_the_conditioning_picture_is_seen_coarsely() -> None:
    """Its channels go through the same means as the latents, so that a coarse step is that of the half-size video."""
    pipe = make_wan_image_pipeline()
    calls: list[dict[str, Any]] = []
    pipe.transformer.register_forward_pre_hook(lambda net, args, call: calls.append(call), with_kwargs=True)
    animate(pipe, num_inference_steps=1)
    (stock, _), full = calls[:2], calls[0]["hidden_states"]
    calls.clear()
    accelerate(pipe, spatial=PLAN)
    pipe.transformer.register_forward_pre_hook(lambda net, args, call: calls.append(call), with_kwargs=True)
    animate(pipe)
    ribbon = calls[1]["hidden_states"]  # the recorder that was there before sees the full call
    halved = torch.nn.functional.avg_pool3d(full[:, 16:], (1, 2, 2))
    expected = halved.unfold(3, 2, 2).unfold(4, 2, 2).permute(0, 1, 5, 2, 3, 4, 6).flatten(3)
    assert ribbon.shape[2:] == (1, 2, 2 * FRAMES * CELLS) and stock["encoder_hidden_states"].shape[1] == 512
    torch.testing.assert_close(ribbon[:, 16:, 0], expected)


def test_pictures_that_differ_in_what_they_reuse_keep_their_conditions() -> None:
    """A first and a last picture for every sample are one row each of a batch twice as large."""
    pipe = make_wan_image_pipeline(pos_embed_seq_len=10)
    call = partial(animate, pipe, last_image=block((0, 90, 0)))
    scripts = [tuple(step % 3 == kind for step in range(6)) for kind in (1, 2)]
    found = []
    for pair in (scripts, scripts[:1] * 2, scripts[1:] * 2):
        policy = Scripted(script=tuple(zip(*pair, strict=True)), transition="inherit", compute_stage_end=False)
        accelerate(pipe, spatial=PLAN, temporal=policy)
        found.append(call())
    for sample in (0, 1):
        torch.testing.assert_close(found[0][sample], found[1 + sample][sample], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "check", [check_a_permuted_ribbon_is_the_stock_forward, check_flops_are_those_that_a_counter_counts]
)
def test_image_to_video_conforms(check: Callable[[Family], None]) -> None:
    arguments = partial(videos, words=512, image=block())
    guided, unguided = ({"guidance_scale": scale} for scale in (2.5, 1.0))
    check(Family("wan-i2v", make_wan_image_pipeline, arguments, FRAMES * 4 * CELLS, guided, unguided))


# ---- layer caches


@pytest.mark.parametrize("plan", [None, RALU(steps=(4, 4, 4))])
@pytest.mark.parametrize(
    "policy", [ToCa(3, 0.4, first=1), ToCa(3, 0.4, first=1, score="key"), TaylorSeer(3, per_layer=True)]
)
def test_layer_caches(pipe: Any, policy: Any, plan: RALU | None) -> None:
    ran: list[tuple[str, int]] = []
    for name in ("attn1.to_q", "attn2.to_q", "ffn"):
        module = pipe.transformer.blocks[-1].get_submodule(name)
        module.register_forward_pre_hook(lambda module, args, name=name: ran.append((name, args[0].shape[1])))
    with accelerate(pipe, spatial=plan, temporal=policy) as handle, Counted(pipe.transformer) as counted:
        together = latents(pipe, 2)
    report = handle.report
    assert report is not None and counted.flops == report.flops
    served = sum(stage.reused + stage.partial for stage in report.stages)
    calls = sum(step.calls for step in report.steps)
    assert served > 0 and served % 2 == 0
    for name in ("attn1.to_q", "attn2.to_q"):
        assert len([one for one, _ in ran if one == name]) == calls - served // 2
    with accelerate(pipe, spatial=plan, temporal=policy):
        alone = pipe(**videos((1,), guidance_scale=2.5)).frames
    torch.testing.assert_close(alone[0], together[1], atol=1e-5, rtol=1e-5)


def test_layer_caches_without_reuse_are_the_uncached_run(pipe: Any) -> None:
    with accelerate(pipe, spatial=PLAN):
        expected = latents(pipe)
    for policy in (ToCa(1), TaylorSeer(1, per_layer=True)):
        with accelerate(pipe, spatial=PLAN, temporal=policy):
            assert torch.equal(latents(pipe), expected)
    with pytest.raises(ValueError, match="score 'attention' is not supported for Wan"):
        accelerate(pipe, temporal=ToCa(score="attention"))
    assert not pipe.transformer._forward_pre_hooks


# ---- Wan 2.2


def make_pair() -> Any:
    """One transformer for high, another for low noise levels."""
    return make_wan_pipeline(transformer_2=make_wan_transformer(1), boundary_ratio=0.8)


def test_two_transformers() -> None:
    pipe = make_pair()
    stock = latents(pipe)
    ran: dict[str, list[int]] = {"transformer": [], "transformer_2": []}
    for name, tokens in ran.items():
        norm = getattr(pipe, name).blocks[-1].norm3
        norm.register_forward_pre_hook(lambda norm, args, tokens=tokens: tokens.append(args[0].shape[1]))
    with accelerate(pipe, spatial=PLAN) as handle:
        uncached = latents(pipe)
        assert handle.report is not None
        steps = [(step.sigma, step.tokens) for step in handle.report.steps for _ in range(2)]
        for name, high in (("transformer", True), ("transformer_2", False)):
            assert ran[name] == [tokens for sigma, tokens in steps if (sigma >= 0.8) is high] != []
    with accelerate(pipe, spatial=PLAN, temporal=TaylorSeer(interval=3, max_age=0)):
        assert torch.equal(latents(pipe), uncached)
    with accelerate(pipe, spatial=PLAN, temporal=Adaptive(interval=3, ratio=0.3)):
        assert latents(pipe).isfinite().all()
    assert torch.equal(latents(pipe), stock)
    assert not pipe.transformer_2._forward_pre_hooks


def test_one_transformer_never_reuses_what_the_other_has_computed() -> None:
    pipe = make_pair()
    always = Scripted(script=((True, True),) * 8, first=1, transition="inherit", compute_stage_end=False)
    with accelerate(pipe, temporal=always) as handle:
        assert latents(pipe).isfinite().all()
    assert handle.report is not None
    computed = [step.sigma for step in handle.report.steps if not step.reused]
    first_low = max(step.sigma for step in handle.report.steps if step.sigma < 0.8)
    assert computed == [1.0, first_low]


def test_time_steps_of_tokens_that_are_all_the_same() -> None:
    """The 5B model's text-to-video gives every token the same time step, which is that of the sample."""
    found = []
    for expand in (False, True):
        pipe = make_wan_pipeline(expand_timesteps=expand)
        for policy in (None, TaylorSeer(interval=2, transition="inherit"), "teacache:0.1"):
            handle = accelerate(pipe, spatial=PLAN, temporal=policy)
            found.append(latents(pipe))
            assert handle.report is not None and handle.report.completed
    for one, other in zip(found[:3], found[3:], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    family = Family("5b", partial(make_wan_pipeline, expand_timesteps=True), videos, 120, {"guidance_scale": 2.5}, {})
    handle = accelerate(pipe := family.make(), spatial=PLAN)
    with Counted(pipe.transformer) as counted:
        family.run(pipe)
    assert handle.report is not None and counted.flops == handle.report.flops


def test_time_steps_of_tokens_that_differ() -> None:
    """The 5B model's image-to-video keeps the first frame clean."""
    pipe = make_wan_image_pipeline(in_channels=16, image_dim=None, added_kv_proj_dim=None)
    pipe.register_to_config(expand_timesteps=True)
    accelerate(pipe, spatial=PLAN)
    with pytest.raises(ValueError, match=r"between tokens, here 0 to 1000 .* not supported with spatial stages"):
        animate(pipe)
    handle = accelerate(pipe, temporal=TaylorSeer(interval=2))
    assert animate(pipe).isfinite().all()
    assert handle.report is not None and handle.report.stages[0].reused > 0
    accelerate(pipe, temporal=Adaptive(interval=3, ratio=0.3))
    with pytest.raises(ValueError, match="not supported with row-sparse recompute"):
        animate(pipe)


# ---- what is refused


def test_schedulers_of_several_steps_are_refused_with_advice(pipe: Any) -> None:
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 5.0}
    pipe.scheduler = DPMSolverMultistepScheduler(**flow)
    with pytest.raises(TypeError, match=r"set pipe.scheduler = FlowMatchEulerDiscreteScheduler\(shift=5.0\)"):
        accelerate(pipe, spatial="ralu")
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    accelerate(pipe, spatial=PLAN)
    assert latents(pipe).isfinite().all()


@pytest.mark.parametrize(("height", "nearest"), [(80, "96x160"), (16, "32x160")])
def test_cells_may_not_straddle_frames(pipe: Any, height: int, nearest: str) -> None:
    accelerate(pipe, spatial=PLAN)
    with pytest.raises(ValueError, match=f"multiples of 32 for spatial stages, got {height}x160; nearest: {nearest}"):
        latents(pipe, height=height, num_frames=5)
    with accelerate(pipe, temporal="seacache"):
        assert latents(pipe, height=height, num_frames=5).isfinite().all()


def test_scorers_and_lifts_that_videos_do_not_have(pipe: Any) -> None:
    with pytest.raises(ValueError, match="regions='text-attention' is not supported"):
        accelerate(pipe, spatial=RALU(regions="text-attention"), temporal="teacache")
    assert not pipe.transformer._forward_pre_hooks and not hasattr(pipe.scheduler, "stock")
    accelerate(pipe, spatial=RALU(steps=(2, 2, 2), lift="pixel"))
    with pytest.raises(ValueError, match="lift 'pixel' needs an autoencoder of images"):
        latents(pipe)


def test_other_patches_and_pipelines() -> None:
    with pytest.raises(ValueError, match=r"patch_size \(2, 2, 2\) is not supported, only \(1, p, p\)"):
        accelerate(make_wan_pipeline(make_wan_transformer(patch_size=(2, 2, 2))), temporal="teacache")
    other = diffusers.WanVideoToVideoPipeline(
        tokenizer=None, text_encoder=None, vae=make_wan_vae(), transformer=make_wan_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip
    with pytest.raises(TypeError, match=r"WanVideoToVideoPipeline .* is not supported"):
        accelerate(other, spatial="ralu")
