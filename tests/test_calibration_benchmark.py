"""benchmarks/calibration.py runs on any pipeline's folder: here a Stable Diffusion 3 with small random weights."""

import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

import ralu_cache.demo
from benchmarks import calibration
from benchmarks.calibration_page import Point, at_cost
from ralu_cache.tune.calibration.watch import Trace
from tests.pipelines import make_sd3_pipeline
from tests.strategies import situations

TINY_FLUX = Path(ralu_cache.demo.__file__).parent / "tiny_flux"


@pytest.fixture
def sd3(tmp_path: Path) -> Path:
    """A folder that `DiffusionPipeline.from_pretrained` loads, with text encoders."""
    words = CLIPTokenizer.from_pretrained(TINY_FLUX / "tokenizer")
    pieces = T5Tokenizer.from_pretrained(TINY_FLUX / "tokenizer_2")
    torch.manual_seed(3)
    clip = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(words), hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
            projection_dim=16, eos_token_id=words.eos_token_id, max_position_embeddings=words.model_max_length,
        )
    )  # fmt: skip
    t5 = T5EncoderModel(T5Config(vocab_size=len(pieces), d_model=32, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    stock = make_sd3_pipeline()
    diffusers.StableDiffusion3Pipeline(
        transformer=stock.transformer, scheduler=stock.scheduler, vae=stock.vae, text_encoder=clip, tokenizer=words,
        text_encoder_2=clip, tokenizer_2=words, text_encoder_3=t5, tokenizer_3=pieces,
    ).save_pretrained(tmp_path / "tiny-sd3")  # fmt: skip
    return tmp_path / "tiny-sd3"


@pytest.mark.parametrize("guided", [False, True])
def test_it_measures_a_folder(sd3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guided: bool) -> None:
    """All plans with guidance; without it one."""
    plans = (("plain", 5), ("ralu-4x", 6)) if guided else (("plain", 5),)
    monkeypatch.setattr(calibration, "SHARES", (0.3,))
    monkeypatch.setattr(calibration, "PLANS", {plan: calibration.PLANS[plan] for plan, _ in plans})
    options = ["--model", str(sd3), "--prompts", "2", "--fit-prompts", "2", "--size", "32", "--steps", "6"]
    options += ["--max-sequence-length", "16", "--out", str(tmp_path / "out"), *(["--guided"] if guided else [])]
    calibration.main(options)
    folder = tmp_path / "out" / ("tiny-sd3-guided" if guided else "tiny-sd3")
    data = json.loads((folder / "calibration.json").read_text())
    assert data["model"] == "tiny-sd3" and not set(data["prompts"]) & set(data["fit_prompts"])
    assert str(tmp_path) not in "".join(file.read_text() for file in folder.glob("*.[jm][sd]*"))
    for plan, sets in plans:
        points = [point for point in data["points"] if point["plan"] == plan]
        assert len({point["coefficients"] for point in points}) == sets + guided
        for point in points:
            assert point["flop_ratio"] >= 1 and len(point["psnr"]) == 2
            assert (point["judgement"] is None) == ("oracle" in point["coefficients"])
        assert any(point["computed"] < point["steps"] for point in points)
    assert [len(stages) for stages in data["explained_by_step"].values()] == [1, 3][: len(plans)]
    assert ("## ralu-4x: 18 steps" in (folder / "calibration.md").read_text()) == guided
    assert (folder / "calibration.png").stat().st_size > 10000


def test_guidance_branches_together() -> None:
    """Three pictures in calls of two, each call with two branches."""
    changes = torch.tensor([[1.0], [2.0], [3.0], [6.0], [8.0], [0.0]])
    assert calibration.together(changes, 3, 2).flatten().tolist() == [2, 4, 2, 4, 4, 4]
    assert torch.equal(calibration.together(changes, 6, 2), changes)


def test_what_the_step_explains() -> None:
    """The signal's changes are the same for both pictures; the output's are the other way round."""
    plan, nan = tuple(situations(4)), float("nan")
    traces = [Trace(plan, (nan, 1.0, 2.0, 3.0), (nan, *output)) for output in ((1.0, 2.0, 3.0), (3.0, 2.0, 1.0))]
    assert calibration.explained_by_step(traces) == [pytest.approx((1.0, 0.0), abs=1e-6)]


def test_curves_are_compared_between_their_points() -> None:
    curve = [
        Point("p", "c", 0.1, 9, 5.0, ratio, psnr, (1.0,), None, None) for ratio, psnr in ((3, (20.0,)), (1, (40.0,)))
    ]
    assert at_cost(curve, 1.5, "psnr") == pytest.approx(np.array([35.0]))
