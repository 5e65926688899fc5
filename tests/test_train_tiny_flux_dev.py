"""Distilling the guidance: the forward is the stock one, first weights say what the teacher says, walks are Euler's."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

from benchmarks.regime.pictures import BATCH, PlainRun, Shelf
from benchmarks.tiny_flux.evaluate import HELD_OUT_SEED
from benchmarks.tiny_flux.fast_forward import FastForward
from benchmarks.tiny_flux.pipeline import load_text_models
from benchmarks.tiny_flux.render import render
from benchmarks.tiny_flux.scenes import sample_scene
from benchmarks.tiny_flux.text import TextModels
from benchmarks.tiny_flux.tokens import COARSE, FINE, children, pack, position_ids
from benchmarks.tiny_flux_dev.distil import SHIFT, error_weight, guided
from benchmarks.tiny_flux_dev.evaluate import compare
from benchmarks.tiny_flux_dev.network import with_guidance
from benchmarks.tiny_flux_dev.trajectories import GUIDANCE, Trajectories, Walk, levels, lift, pools
from benchmarks.train_tiny_flux_dev import main
from ralu_cache.models.embedded import TINY_FLUX, TINY_FLUX_DEV

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teacher() -> FluxTransformer2DModel:
    return FluxTransformer2DModel.from_pretrained(TINY_FLUX.folder / "transformer", dtype=torch.float32)


@pytest.fixture(scope="module")
def text() -> TextModels:
    return load_text_models(TINY_FLUX.folder)


@pytest.fixture(scope="module")
def inputs(text: TextModels) -> tuple[torch.Tensor, ...]:
    """Tokens, words, pooled, levels, ids."""
    words, pooled = text.encode(["a red circle on a blue background", "a pink star on a plain green background"])
    tokens = torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(0))
    return tokens, words, pooled, torch.tensor([0.9, 0.4]), position_ids(COARSE)


def stock(model: FluxTransformer2DModel, inputs: tuple[torch.Tensor, ...], guidance: torch.Tensor | None):
    tokens, words, pooled, sigma, ids = inputs
    return model(
        hidden_states=tokens, encoder_hidden_states=words, pooled_projections=pooled, timestep=sigma, img_ids=ids,
        txt_ids=torch.zeros(16, 3), guidance=guidance, return_dict=False,
    )[0]  # fmt: skip


def test_the_first_weights_say_what_the_teacher_says_at_any_guidance(teacher, inputs) -> None:
    model = with_guidance(teacher)
    for guidance in (1.0, 6.5):
        torch.testing.assert_close(stock(model, inputs, torch.full((2,), guidance)), stock(teacher, inputs, None))
    assert model.config.guidance_embeds and not teacher.config.guidance_embeds
    with pytest.raises(ValueError, match="guidance_embeds is True"):
        with_guidance(model)


def test_the_embedding_tells_guidance_apart_smoothly(teacher) -> None:
    """What the second layer sees of neighbouring scales is alike, of far ones not."""
    first = with_guidance(teacher).time_text_embed
    seen = torch.nn.functional.silu(
        first.guidance_embedder.linear_1(first.time_proj(torch.tensor([3.0, 3.05, 7.0]) * 1000))
    )
    near, far = (seen[1] - seen[0]).norm(), (seen[2] - seen[0]).norm()
    assert near < 0.1 * far


def test_fast_forward_takes_guidance_as_the_stock_forward_does(teacher, inputs) -> None:
    torch.manual_seed(0)
    model = with_guidance(teacher)
    with torch.no_grad():
        for parameter in model.time_text_embed.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    guidance = torch.tensor([1.5, 6.0])
    tokens, words, pooled, sigma, ids = inputs
    fast = FastForward(model, torch.float32, CPU)
    predicted = fast(tokens, words, pooled, sigma, ids, guidance)
    torch.testing.assert_close(predicted, stock(model, inputs, guidance), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="needs a guidance"):
        fast(tokens, words, pooled, sigma, ids)
    with pytest.raises(ValueError, match="takes no guidance"):
        FastForward(teacher, torch.float32, CPU)(tokens, words, pooled, sigma, ids, guidance)


def test_the_target_is_the_pipelines_true_cfg(teacher, inputs, text) -> None:
    tokens, words, pooled, sigma, ids = inputs
    empty = text.encode([""])
    guidance = torch.tensor([3.0, 7.0])
    fast = FastForward(teacher, torch.float32, CPU)
    found = guided(fast, tokens, sigma, guidance, ids, words, pooled, (empty[0][0], empty[1][0]))
    negative = stock(teacher, (tokens, empty[0].expand(2, -1, -1), empty[1].expand(2, -1), sigma, ids), None)
    expected = negative + guidance[:, None, None] * (stock(teacher, inputs, None) - negative)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    assert not found.requires_grad


def test_an_error_weighs_as_much_as_it_moves_the_picture() -> None:
    """A thousand steps of the pipeline's schedule: their lengths are the weight's derivative."""
    sigmas = torch.tensor(levels(1000, SHIFT), dtype=torch.float64)
    lengths = -1000 * sigmas.diff()
    middle = (sigmas[1:] + sigmas[:-1]) / 2
    torch.testing.assert_close(error_weight(middle, torch.ones(1000)), lengths, rtol=1e-3, atol=0)
    torch.testing.assert_close(error_weight(middle, torch.full((1000,), 3.0)), lengths / 9, rtol=1e-3, atol=0)


@pytest.mark.parametrize(("steps", "shift"), [(4, 1.3), (10, 3.0)])
def test_levels_are_the_schedulers(steps: int, shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist())
    assert levels(steps, shift) == pytest.approx(scheduler.sigmas.tolist(), abs=1e-6)
    late = levels(steps, shift, start=0.6)
    assert late[0] == pytest.approx(0.6) and late[-1] == 0 and len(late) == steps + 1
    assert np.all(np.diff(late) < 0)


def test_a_lifted_token_is_four_equal_pixels() -> None:
    latents = torch.randn(2, 4, 16, 16)
    fine = lift(pack(latents))
    assert torch.equal(fine, pack(latents.repeat_interleave(2, -1).repeat_interleave(2, -2)))
    one = torch.zeros(1, 64, 16)
    one[0, 9] = 1
    assert sorted(lift(one)[0].sum(1).nonzero().flatten().tolist()) == sorted(children()[9].tolist())


def test_walks_along_straight_lines_arrive_at_their_ends(text) -> None:
    """The velocity n - x0 brings every walk from its noise n to x0, whoever walks it, in any number of steps."""
    coarse, fine = (Trajectories(side, 6, text, np.random.default_rng(side)) for side in (COARSE, FINE))
    wanted = torch.full((64, 16), 0.25)
    begun = list(coarse.walks)
    velocities = {id(walk): walk.tokens - wanted for walk in begun}
    for _ in range(100):
        points = coarse.draw(6)
        velocity = torch.stack([
            velocities.get(id(coarse.walks[index]), torch.zeros(64, 16)) for index in points.chosen
        ])  # fmt: skip
        coarse.advance(points, velocity, velocity, fine)
    for walk in begun:
        torch.testing.assert_close(walk.tokens, wanted, rtol=0, atol=1e-5)
        assert walk.sigmas == [0.0] and walk in fine.earlier
    assert not any(walk in begun for walk in coarse.walks), "those that arrive make room"


def test_some_fine_walks_begin_where_coarse_ones_arrived(text) -> None:
    fine = Trajectories(FINE, 1, text, np.random.default_rng(0))
    words, pooled = text.encode(["a red circle"])
    arrived = [Walk(torch.full((64, 16), 3.0), [0.0], 4.5, words[0], pooled[0], False) for _ in range(60)]
    fine.earlier.extend(arrived)
    walks = [fine.begin() for _ in range(100)]
    lifted = [walk for walk in walks if walk.sigmas[0] < 1]
    assert 15 < len(lifted) < 45 and len(fine.earlier) == 60 - len(lifted)
    for walk in lifted:
        sigma = walk.sigmas[0]
        assert walk.guidance == 4.5 and torch.equal(walk.words, words[0])
        assert walk.tokens.mean().item() == pytest.approx((1 - sigma) * 3, abs=0.1)
        assert walk.tokens.std().item() == pytest.approx(sigma, abs=0.1)
    others = [walk for walk in walks if walk.sigmas[0] == 1]
    assert all(GUIDANCE[0] <= walk.guidance <= GUIDANCE[1] for walk in others)
    assert len({walk.guidance for walk in others}) == len(others)


def test_teacher_and_student_walk_their_own_trajectories(text) -> None:
    pool = pools({"half": 20, "full": 1}, text, [0])["half"]
    before = [walk.tokens for walk in pool.walks]
    steps = [walk.sigmas[1] - walk.sigmas[0] for walk in pool.walks]
    by_student = [walk.by_student for walk in pool.walks]
    assert 0 < sum(by_student) < 20
    points = pool.draw(20)
    pool.advance(points, torch.ones(20, 64, 16), torch.zeros(20, 64, 16))
    for walk, old, step, own in zip(pool.walks, before, steps, by_student, strict=True):
        torch.testing.assert_close(walk.tokens, old if own else old + step)
    assert points.sigma.tolist() == [1.0] * 20 and len(set(points.chosen)) == 20


def test_command_trains_once_and_gives_a_loadable_pipeline(tmp_path: Path) -> None:
    command = ["--out", str(tmp_path), "--scenes", "2", "--batch-scale", "0.05", "--steps", "3", "--rate", "1"]
    main(command)
    before = (tmp_path / "transformer_log.json").stat().st_mtime_ns
    main(command)
    assert (tmp_path / "transformer_log.json").stat().st_mtime_ns == before, "what is there is not made again"
    log = json.loads((tmp_path / "transformer_log.json").read_text())
    assert sum(log["seen"].values()) > 0 and (tmp_path / "loss.png").exists()
    pipeline = FluxPipeline.from_pretrained(tmp_path / "pipeline", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    call = {"height": 64, "width": 64, "num_inference_steps": 2, "max_sequence_length": 16, "output_type": "np"}
    weak, strong = (
        pipeline("a red circle", guidance_scale=g, generator=torch.Generator().manual_seed(0), **call).images[0]
        for g in (1.0, 8.0)
    )
    assert weak.shape == (64, 64, 3) and np.abs(weak - strong).max() > 1e-3, "the guidance says something by now"


def test_the_command_goes_on_from_a_student_that_was_trained_before(tmp_path: Path) -> None:
    """With rates near 0 the weights are those that it began with, guidance embedding and all."""
    first = TINY_FLUX_DEV.folder / "transformer"
    command = ["--out", str(tmp_path), "--scenes", "2", "--batch-scale", "0.05", "--steps", "1", "--rate", "1e-6"]
    main([*command, "--first", str(first)])
    wanted, found = (
        FluxTransformer2DModel.from_pretrained(folder, dtype=torch.float32).state_dict()
        for folder in (first, tmp_path / "transformer")
    )
    assert all(torch.allclose(found[name], value, atol=1e-3) for name, value in wanted.items())


def test_the_evaluation_compares_the_same_seeds(tmp_path: Path) -> None:
    """A made-up student that is 0.1 too bright: 20 dB, and as well drawn."""

    def make(run: PlainRun, start: int) -> np.ndarray:
        rng = np.random.default_rng(HELD_OUT_SEED)
        scenes = [sample_scene(rng) for _ in range(start + BATCH)][start:]
        taught = np.stack([render(scene) for scene in scenes]).astype(np.float32) / 255 * 0.8
        return taught + (0.1 if run.model == "tiny-flux-dev" else 0.0)

    found = compare(Shelf(tmp_path, make), 3.0, 50, BATCH, None)
    assert found["psnr"]["value"] == pytest.approx(20, abs=0.2)
    assert found["psnr of the mean squared error"] == pytest.approx(20, abs=0.2)
    assert found["tiny-flux"]["attributes"]["value"] > 90
    learnt, taught = (found[name]["probability"]["value"] for name in ("tiny-flux-dev", "tiny-flux"))
    assert found["difference"]["probability"]["value"] == pytest.approx(learnt - taught, abs=0.01)
