"""benchmarks/examples/qwen_image.py on a tiny random pipeline."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks.examples.qwen_image import main
from tests.pipelines_qwen import make_qwen_pipeline


@pytest.mark.parametrize(("spatial", "temporal"), [("ralu-7x", "seacache:0.3"), ("none", "adaptive")])
def test_the_example_draws_and_reports(
    spatial: str, temporal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []
    prompts: list[str] = []

    def load(request: Any) -> Any:
        asked.append(request)
        pipe = make_qwen_pipeline()

        def encode_prompt(prompt: list[str], num_images_per_prompt: int, **_: Any) -> tuple[torch.Tensor, None]:
            prompts.extend(prompt)
            return torch.randn(1, 7, 32, generator=torch.Generator().manual_seed(len(prompt[0]))), None

        pipe.encode_prompt = encode_prompt
        return pipe

    monkeypatch.setattr("ralu_cache.generate.load", load)
    out = tmp_path / "fox.png"
    arguments = ["--prompt", "a fox", "--steps", "8", "--spatial", spatial, "--temporal", temporal, "--out", str(out)]
    assert main([*arguments, "--height", "32", "--width", "48"]) == [out]
    with Image.open(out) as picture:
        assert picture.size == (48, 32)
    assert prompts == ["a fox", " "], "guided"
    assert (asked[0].model, asked[0].dtype, asked[0].device) == ("Qwen/Qwen-Image", "bfloat16", "cuda")
    assert "QwenImagePipeline" in capsys.readouterr().out
