"""Training of the tiny SD3 pipeline: the token forward is the stock one, first weights arrive, the command works."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, StableDiffusion3Pipeline

from benchmarks import train_tiny_sd3
from benchmarks.tiny_flux.tokens import pack
from benchmarks.tiny_flux.trainer import TrainingConfig
from benchmarks.tiny_sd3.distil import LEAST_TEACHER, TEACHER_ALONE, place, teacher_weight
from benchmarks.tiny_sd3.network import TokenVelocity
from benchmarks.tiny_sd3.parts import build_transformer
from benchmarks.tiny_sd3.transplant import joint_block, transplant

FLUX = Path(__file__).parents[1] / "ralu_cache" / "tiny_flux"


@pytest.mark.parametrize("side", [8, 16])
def test_tokens_and_latents_give_the_same_velocity(side: int) -> None:
    torch.manual_seed(0)
    model = build_transformer()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    latents, words, pooled = torch.randn(2, 4, 2 * side, 2 * side), torch.randn(2, 36, 96), torch.randn(2, 96)
    sigma, kind = torch.tensor([0.3, 0.8]), "half" if side == 8 else "full"
    placed = place(kind, pack(latents), pack(latents), True, np.random.default_rng(0))
    with torch.no_grad():
        stock = model(latents, words, pooled, sigma * 1000).sample
        found = TokenVelocity(model)(placed.clean, words, pooled, sigma, placed.positions, placed.side)
    torch.testing.assert_close(found, pack(stock), rtol=1e-4, atol=1e-5)


def test_mixed_tokens_lie_where_their_pixels_are() -> None:
    """Whatever the frame, the four children of a coarse token are about its centre."""
    rng = np.random.default_rng(0)
    for own in [True, False] * 10:
        placed = place("mixed", torch.zeros(1, 64, 16), torch.zeros(1, 256, 16), own, rng)
        assert placed.side == (8 if own else 16)
        centres = (placed.positions + 0.5) * 16 / placed.side  # in fine tokens from the picture's corner
        coarse = 64 - (len(centres) - 64) // 3
        area = 4 * coarse + len(centres) - coarse
        assert area == 256
        weights = torch.tensor([4.0] * coarse + [1.0] * (len(centres) - coarse))
        assert (centres * weights[:, None]).sum(0) / 256 == pytest.approx(torch.tensor([8.0, 8.0]))


def test_first_weights_are_those_of_tiny_flux() -> None:
    flux = FluxTransformer2DModel.from_pretrained(FLUX / "transformer", dtype=torch.float32)
    model = build_transformer()
    modulation = model.state_dict()["transformer_blocks.0.norm1.linear.weight"]
    assert not modulation[6 * 192 :].any(), "the second attention adds nothing at first"
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    transplant(model, flux)
    state, source = model.state_dict(), flux.state_dict()
    kept = {name for name, value in state.items() if value.equal(fresh[name])}
    assert kept == {
        *(f"transformer_blocks.0.attn2.{part}" for part in (
            "norm_q.weight", "norm_k.weight", "to_q.weight", "to_q.bias", "to_k.weight", "to_k.bias", "to_v.weight",
            "to_v.bias", "to_out.0.weight", "to_out.0.bias")),
        "pos_embed.pos_embed", "time_text_embed.text_embedder.linear_1.weight",
        "time_text_embed.text_embedder.linear_1.bias",
    }  # fmt: skip
    latents = torch.randn(1, 4, 2, 2)
    torch.testing.assert_close(model.pos_embed.proj(latents).flatten(1), flux.x_embedder(pack(latents))[0])
    hidden = torch.randn(1, 192)
    swapped = pack(model.proj_out(hidden).view(1, 2, 2, 4).permute(0, 3, 1, 2))
    torch.testing.assert_close(swapped[:, 0], flux.proj_out(hidden))
    prefix = "single_transformer_blocks.5."
    single = {name.removeprefix(prefix): value for name, value in source.items() if name.startswith(prefix)}
    joint = joint_block(single)
    x = torch.randn(2, 192 + 768)
    both = x[:, :192] @ joint["attn.to_out.0.weight"].T + x[:, 192:] @ joint["ff.net.2.weight"].T
    torch.testing.assert_close(both, x @ single["proj_out.weight"].T)
    with pytest.raises(ValueError, match="2 blocks"):
        small = type(model).from_config({**model.config, "num_layers": 2})
        transplant(small, flux)


def test_the_teacher_fades() -> None:
    assert teacher_weight(0.0) == teacher_weight(TEACHER_ALONE) == 1.0
    assert teacher_weight(1.0) == pytest.approx(LEAST_TEACHER)
    assert LEAST_TEACHER < teacher_weight(0.9) < 1.0


def test_training_goes_on_from_saved_weights(tmp_path: Path) -> None:
    """One step of a tiny rate later the weights are still the shipped ones, to what float16 keeps."""
    command = ["--out", str(tmp_path), "--flux", str(FLUX), "--scenes", "2", "--batch-scale", "0.05", "--workers", "1"]
    train_tiny_sd3.main([*command, "--init", str(FLUX.parent / "tiny_sd3"), "--steps", "1", "--rate", "1e-6"])
    shipped, trained = (
        SD3Transformer2DModel.from_pretrained(folder / "transformer", dtype=torch.float32).state_dict()
        for folder in (FLUX.parent / "tiny_sd3", tmp_path)
    )
    for name, value in shipped.items():
        torch.testing.assert_close(trained[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_command_trains_and_gives_a_loadable_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_tiny_sd3, "TrainingConfig", partial(TrainingConfig, log_every=2))
    common = ["--out", str(tmp_path), "--flux", str(FLUX), "--scenes", "6", "--batch-scale", "0.1", "--workers", "1"]
    train_tiny_sd3.main([*common, "--steps", "4"])
    log = json.loads((tmp_path / "transformer_log.json").read_text())
    assert sum(log["seen"].values()) > 0 and len(log["log"]) == 2 and (tmp_path / "loss.png").exists()
    pipeline = StableDiffusion3Pipeline.from_pretrained(tmp_path / "pipeline", dtype=torch.float32)
    prompt = "a red circle on a blue background"
    image = pipeline(prompt, height=64, width=64, num_inference_steps=2, max_sequence_length=16).images[0]
    assert image.size == (64, 64)
