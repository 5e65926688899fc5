"""The training command of the tiny pipeline: grammar, renderer, frozen text, fast forward, optimiser, whole command."""

import json
import math
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from diffusers import FluxPipeline
from safetensors.torch import load_file

from benchmarks.tiny_flux.autoencoder import build_autoencoder, encode
from benchmarks.tiny_flux.budget import LONGEST_STEP, Budget, learning_rate_factor
from benchmarks.tiny_flux.fast_forward import FastForward
from benchmarks.tiny_flux.latents import DataConfig
from benchmarks.tiny_flux.optimiser import Optimiser, orthogonalise
from benchmarks.tiny_flux.render import halve, render
from benchmarks.tiny_flux.scenes import WORDS, sample_scene
from benchmarks.tiny_flux.text import build_text_models
from benchmarks.tiny_flux.tokens import MixedTokens, pack, position_ids, random_mixed
from benchmarks.tiny_flux.transformer import ModelSize, TransformerConfig, build_transformer
from benchmarks.tiny_flux.workers import Worker, launch
from benchmarks.train_tiny_flux import main

CPU = torch.device("cpu")
SHIPPED = Path(__file__).parents[1] / "ralu_cache" / "tiny_flux"
FIRST_PROMPT = "a cyan heart and a pink square on a white and yellow horizontal striped background"
FIRST_SUM = 10077530


def test_prompts_use_known_words_only() -> None:
    rng = np.random.default_rng(0)
    words = {word for _ in range(2000) for word in sample_scene(rng).prompt.split()}
    assert words <= set(WORDS)
    assert {"circle", "star", "checkered", "an", "small", "bottom"} <= words


def test_scenes_and_images_depend_on_the_seed_only() -> None:
    config = DataConfig(scenes=600, two_shape_share=0.1, seed=3)
    assert config.chunks() == [250, 250, 100]
    assert config.draw(1, 20) == config.draw(1, 20)
    assert config.draw(1, 20) != config.draw(0, 20)
    scene = config.draw(0, 1)[0]
    assert np.array_equal(render(scene), render(scene))
    assert render(scene).shape == (128, 128, 3)
    assert halve(render(scene)).shape == (64, 64, 3)


def test_first_held_out_scene_is_the_published_one() -> None:
    scene = sample_scene(np.random.default_rng(987654321))
    assert scene.prompt == FIRST_PROMPT
    assert int(render(scene).astype(np.int64).sum()) == FIRST_SUM


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_two_shape_share(share: float) -> None:
    rng = np.random.default_rng(1)
    assert {len(sample_scene(rng, share).shapes) for _ in range(50)} == {1 + int(share)}


def test_every_word_is_one_token_and_unknown_words_are_unk() -> None:
    text = build_text_models()
    for word in WORDS:
        assert len(text.t5_tokenizer(word).input_ids) == 2
        assert len(text.clip_tokenizer(word).input_ids) == 3
    assert text.t5_tokenizer.unk_token_id in text.t5_tokenizer("zebra").input_ids


def test_text_models_reproduce_the_shipped_ones(tmp_path: Path) -> None:
    """To a bit of float16, and what a QR of 64 columns rounds in float32, otherwise on another make of processor."""
    text = build_text_models()
    rtol, atol = torch.finfo(torch.float16).eps, 64 * torch.finfo(torch.float32).eps
    for name, model in (("text_encoder", text.clip), ("text_encoder_2", text.t5)):
        shipped, built = load_file(SHIPPED / name / "model.safetensors"), model.half().state_dict()
        for key, value in shipped.items():
            torch.testing.assert_close(built[key].float(), value.float(), rtol=rtol, atol=atol, msg=key)
    for name, tokenizer in (("tokenizer", text.clip_tokenizer), ("tokenizer_2", text.t5_tokenizer)):
        tokenizer.save_pretrained(tmp_path / name)
        assert (tmp_path / name / "tokenizer.json").read_bytes() == (SHIPPED / name / "tokenizer.json").read_bytes()


def test_fast_forward_equals_the_stock_forward() -> None:
    torch.manual_seed(0)
    model = build_transformer(ModelSize())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    latents, words, pooled, sigma = torch.randn(3, 64, 16), torch.randn(3, 16, 96), torch.randn(3, 64), torch.rand(3)
    positions = random_mixed(np.random.default_rng(0)).positions(doubled=True)[:64]
    stock = model(
        hidden_states=latents,
        encoder_hidden_states=words,
        pooled_projections=pooled,
        timestep=sigma,
        img_ids=positions,
        txt_ids=torch.zeros(16, 3),
        return_dict=False,
    )[0]
    fast = FastForward(model, torch.float32, CPU)
    predicted = fast(latents, words, pooled, sigma, positions)
    torch.testing.assert_close(predicted, stock, rtol=1e-4, atol=1e-5)

    stock.square().mean().backward()
    predicted.square().mean().backward()
    gradients = fast.parameters.state_dict(fast.parameters.take_gradients())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-6)


def test_mixed_tokens_cover_the_image_once() -> None:
    mixed = MixedTokens.refine(np.array([0, 9]))
    assert len(mixed.kept) == 62 and sorted(mixed.fine.tolist()) == [0, 1, 16, 17, 34, 35, 50, 51]
    fine_ids = mixed.positions(doubled=True)[62:, 1:].tolist()
    assert fine_ids[:4] == [[0, 0], [0, 1], [1, 0], [1, 1]]
    image = torch.arange(2 * 4 * 4.0).view(1, 2, 4, 4)
    assert pack(image).shape == (1, 4, 8)
    assert position_ids(2).tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]


def test_orthogonalise_levels_the_singular_values() -> None:
    matrix = torch.randn(24, 60, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrix))
    assert values.min() > 0.5 and values.max() < 1.5


def test_optimiser_lowers_a_loss() -> None:
    torch.manual_seed(0)
    fast = FastForward(build_transformer(ModelSize(heads=2, doubles=1, singles=1)), torch.float32, CPU)
    optimiser = Optimiser(fast.parameters, Worker(0, 1, CPU))
    inputs = torch.randn(4, 64, 16), torch.randn(4, 16, 96), torch.randn(4, 64), torch.rand(4), position_ids(8)
    losses = []
    for _ in range(15):
        loss = (fast(*inputs) - inputs[0]).square().mean()
        loss.backward()
        optimiser.step(1.0)
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_budget_does_not_count_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 500.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    budget = Budget(minutes=1, _last=next(clock))
    budget.tick()
    budget.tick()
    assert budget.seconds == 1.0 + LONGEST_STEP
    assert math.isclose(budget.fraction, budget.seconds / 60)


def test_learning_rate_warms_up_holds_and_decays() -> None:
    assert learning_rate_factor(0, 0.0, warmup=10, hold=0.5) == 0.1
    assert learning_rate_factor(50, 0.4, warmup=10, hold=0.5) == 1.0
    assert math.isclose(learning_rate_factor(50, 0.75, warmup=10, hold=0.5), 0.5)
    assert learning_rate_factor(50, 1.0, warmup=10, hold=0.5) == 0.01


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match=re.escape("two_shape_share is 1.5")):
        DataConfig(two_shape_share=1.5)
    with pytest.raises(ValueError, match="rate is nan"):
        TransformerConfig(rate=math.nan)
    with pytest.raises(ValueError, match="2 workers on 'cuda'"):
        launch(print, "cuda", 2)
    with pytest.raises(ValueError, match="minutes is 0"):
        Budget(minutes=0)


def test_autoencoder_latents_are_packed_tokens() -> None:
    images = np.zeros((2, 64, 64, 3), np.uint8)
    assert encode(build_autoencoder(), images).shape == (2, 64, 16)


@pytest.mark.slow
def test_command_trains_resumes_and_gives_a_loadable_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mp, "spawn", partial(mp.start_processes, start_method="fork"))  # who need import nothing anew
    settings = "--size 2 1 1 --vae-steps 2 --vae-scenes 4 --scenes 6 --batch-scale 0.1 --warmup 5"
    common = ["--out", str(tmp_path), *settings.split()]
    main([*common, "--steps", "60", "--half-only", "--workers", "1"])
    first = json.loads((tmp_path / "transformer_log.json").read_text())
    assert first["seen"] == {"half": 300, "full": 0, "mixed": 0}
    assert first["log"][-1]["half"] < 0.8 * first["log"][0]["half"]
    assert (tmp_path / "loss.png").exists()

    for name in ("transformer", "pipeline"):
        (tmp_path / name).rename(tmp_path / f"first_{name}")
    main([*common, "--steps", "80", "--workers", "2", "--rate", "0.5"])
    second = json.loads((tmp_path / "transformer_log.json").read_text())
    assert [entry["step"] for entry in second["log"]] == [20, 40, 60, 80]
    pipeline = FluxPipeline.from_pretrained(tmp_path / "pipeline", dtype=torch.float32)
    prompt = "a red circle on a blue background"
    image = pipeline(prompt, height=64, width=64, num_inference_steps=2, max_sequence_length=16).images[0]
    assert image.size == (64, 64)
