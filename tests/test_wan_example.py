"""The example for the real checkpoint, run on a tiny pipeline."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageSequence

from benchmarks.examples import wan
from ralu_cache.report.videos import LINE, MARGIN, side_by_side
from tests.wan_pipelines import make_wan_pipeline, videos

SMALL = ["--height", "64", "--width", "96", "--frames", "5", "--steps", "4"]


def load_tiny(options: Any) -> Any:
    pipe = make_wan_pipeline()
    prompts = videos((0,))
    pipe.encode_prompt = lambda **_: (prompts["prompt_embeds"], prompts["negative_prompt_embeds"])
    return pipe


def test_the_gif_shows_both_videos_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "wan.gif"
    wan.main([*SMALL, "--spatial", "ralu-7x", "--temporal", "taylorseer", "--out", str(out)], load_tiny)
    with Image.open(out) as gif:
        assert gif.size == (2 * 96, 64 + MARGIN + LINE)
        frames = [frame.convert("RGB").tobytes() for frame in ImageSequence.Iterator(gif)]
    assert len(set(frames)) == 5
    assert "reused" in (printed := capsys.readouterr().out) and str(out) in printed


def test_left_is_left() -> None:
    red, blue = (Image.new("RGB", (40, 8), colour) for colour in ("red", "blue"))
    (pair,) = side_by_side({"a": [[red]], "b": [[blue]]})
    assert [pair.getpixel((x, 20)) for x in (0, 39, 40, 79)] == [(255, 0, 0)] * 2 + [(0, 0, 255)] * 2
    with pytest.raises(ValueError, match="unknown"):
        wan.main(["--spatial", "ralu-9x"], load_tiny)
