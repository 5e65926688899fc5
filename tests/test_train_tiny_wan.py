"""Training of the tiny Wan pipeline: clips move, latents are paired, the token forward is the stock one."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLWan, WanPipeline, WanTransformer3DModel

from benchmarks.tiny_flux.optimiser import Optimiser
from benchmarks.tiny_flux.workers import Worker
from benchmarks.tiny_wan.autoencoder import build_autoencoder, decode, frame_latents, pair_frames, to_video
from benchmarks.tiny_wan.latents import encode_clips
from benchmarks.tiny_wan.network import TokenVelocity
from benchmarks.tiny_wan.parts import assemble, build_text, build_transformer, encode_prompts
from benchmarks.tiny_wan.scenes import FRAMES, MOTIONS, sample_clip
from benchmarks.tiny_wan.task import CELLS, LATENT_FRAMES, place, random_refined
from benchmarks.train_tiny_wan import main
from ralu_cache.plane.canvas import patchify

FLUX = Path(__file__).parents[1] / "ralu_cache" / "tiny_flux"


def centre(mask: np.ndarray) -> np.ndarray:
    """(x, y) of the mean pixel."""
    return np.argwhere(mask).mean(0)[::-1]


def test_what_the_prompt_says_moves() -> None:
    rng = np.random.default_rng(0)
    seen = set()
    while len(seen) < len(MOTIONS):
        clip = sample_clip(rng)
        motion = next(motion for motion in MOTIONS if motion in clip.prompt)
        if motion in seen or clip.scene.background != "solid":
            continue
        seen.add(motion)
        frames = clip.frames()
        assert frames.shape == (FRAMES, 64, 64, 3) and frames.dtype == np.uint8
        plain = np.median(frames.reshape(-1, 3), 0)
        shapes = np.abs(frames.astype(float) - plain).max(-1) > 40
        (x, y), area = centre(shapes[-1]) - centre(shapes[0]), shapes[-1].sum() / shapes[0].sum()
        expected = {
            "moving left": x < -8, "moving right": x > 8, "moving up": y < -8, "moving down": y > 8,
            "growing": area > 1.8, "shrinking": area < 0.6, "standing still": abs(x) + abs(y) < 0.1,
        }  # fmt: skip
        assert expected[motion], clip.prompt


def test_latent_frames_hold_two_frames() -> None:
    latents = torch.arange(5.0)[None, :, None, None, None].expand(1, 5, 4, 2, 2)
    paired = pair_frames(latents)
    assert paired.shape == (1, 8, 3, 2, 2)
    assert paired[0, ::4, :, 0, 0].T.tolist() == [[0, 0], [1, 2], [3, 4]]


def test_the_unclamped_decoding_is_the_stock_one() -> None:
    vae = build_autoencoder()
    z = torch.randn(1, 8, 3, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(decode(vae, z).clamp(-1, 1), vae.decode(z).sample)
        assert vae.encode(to_video(np.zeros((1, 5, 16, 16, 3), np.uint8))).latent_dist.mode().shape == z.shape


def test_tokens_and_videos_give_the_same_velocity() -> None:
    torch.manual_seed(0)
    model = build_transformer()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    video, words = torch.randn(2, 8, LATENT_FRAMES, 16, 16), torch.randn(2, 16, 96)
    sigma = torch.tensor([0.3, 0.8])
    tokens = patchify(video.flatten(2, 3), 2)
    placed = place("full", torch.zeros(2, 80, 32), tokens, True, np.random.default_rng(0))
    with torch.no_grad():
        stock = model(video, sigma * 1000, words).sample
        found = TokenVelocity(model, torch.float32)(placed.clean, words, sigma, placed.positions)
    torch.testing.assert_close(found, patchify(stock.flatten(2, 3), 2), rtol=1e-4, atol=1e-5)


def test_mixed_tokens_lie_where_their_pixels_are() -> None:
    """Whatever the frame of positions, a video frame's tokens are about its centre, weighted by their area."""
    rng = np.random.default_rng(0)
    for own in [True, False] * 10:
        placed = place("mixed", torch.zeros(1, 80, 32), torch.zeros(1, 320, 32), own, rng)
        places = (placed.positions[:, 1:] + 0.5) * (2 if own else 1)
        coarse = 80 - (len(places) - 80) // 3
        area = torch.tensor([4.0] * coarse + [1.0] * (len(places) - coarse))
        for frame in range(LATENT_FRAMES):
            inside = placed.positions[:, 0] == frame
            assert area[inside].sum() == 64
            middle = (places[inside] * area[inside, None]).sum(0) / 64
            assert middle == pytest.approx(torch.tensor([4.0, 4.0]))
    counts = [int(random_refined(rng).sum()) for _ in range(30)]
    assert 0.1 * LATENT_FRAMES * CELLS**2 < min(counts) < max(counts) < 0.5 * LATENT_FRAMES * CELLS**2


def test_the_text_is_that_of_the_pipeline() -> None:
    text = build_text(FLUX)
    prompts = ["an orange ring standing still on a blue to white gradient background", ""]
    pipe = assemble(build_transformer(), build_autoencoder(), FLUX)
    expected = pipe.encode_prompt(prompts, None, False, max_sequence_length=16)[0]
    found = encode_prompts(text, prompts)
    torch.testing.assert_close(found, expected)
    assert text[0].unk_token_id not in text[0](prompts[0]).input_ids
    assert found[1, 0].any() and not found[1, 1:].any(), "nothing behind the end"


def test_coarse_tokens_are_those_of_the_halved_video() -> None:
    clip = sample_clip(np.random.default_rng(1))
    flux = AutoencoderKL.from_pretrained(FLUX / "vae", dtype=torch.float32)
    tokens = encode_clips([clip], flux, build_text(FLUX))
    assert {name: value.shape[1:] for name, value in tokens.items()} == {
        "half": (80, 32), "full": (320, 32), "words": (16, 96)
    }  # fmt: skip
    first = frame_latents(flux, clip.frames()[None])[:, 0]
    assert torch.equal(tokens["full"][:, :64, :16], patchify(first, 2))


def test_muon_trains_the_blocks_matrices() -> None:
    model = build_transformer()
    optimiser = Optimiser(TokenVelocity(model, torch.float32).parameters, Worker(0, 1, torch.device("cpu")))
    matrices = sum(
        value.numel() for name, value in model.named_parameters() if name.startswith("blocks") and value.ndim == 2
    )
    assert int(optimiser._by_muon.sum()) == matrices > 0


def test_training_goes_on_from_saved_weights(tmp_path: Path) -> None:
    """One step of a tiny rate later the weights are still the shipped ones; the autoencoder is taken over."""
    shipped = FLUX.parent / "tiny_wan"
    command = ["--out", str(tmp_path), "--flux", str(FLUX), "--clips", "2", "--batch-scale", "0.05"]
    main([*command, "--init", str(shipped), "--steps", "1", "--rate", "1e-6"])
    assert not (tmp_path / "vae").exists()
    for part, kind in (("transformer", WanTransformer3DModel), ("vae", AutoencoderKLWan)):
        before, after = (
            kind.from_pretrained(folder / part, dtype=torch.float32).state_dict()
            for folder in (shipped, tmp_path / "pipeline")
        )
        for name, value in before.items():
            torch.testing.assert_close(after[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_command_trains_and_gives_a_loadable_pipeline(tmp_path: Path) -> None:
    common = ["--out", str(tmp_path), "--flux", str(FLUX), "--clips", "4", "--vae-clips", "2", "--vae-steps", "1"]
    common += ["--vae-batch", "1"]
    main([*common, "--batch-scale", "0.05", "--steps", "3"])
    log = json.loads((tmp_path / "transformer_log.json").read_text())
    assert sum(log["seen"].values()) > 0 and (tmp_path / "loss.png").exists()
    pipe = WanPipeline.from_pretrained(tmp_path / "pipeline", dtype=torch.float32)
    video = pipe(
        "a red circle moving left on a blue background", height=32, width=32, num_frames=5, num_inference_steps=2,
        max_sequence_length=16,
    ).frames  # fmt: skip
    assert video.shape == (1, 5, 32, 32, 3)
    (tmp_path / "transformer_checkpoint.pt").unlink()
    main(common)  # nothing is left to do
    assert not (tmp_path / "transformer_checkpoint.pt").exists()
