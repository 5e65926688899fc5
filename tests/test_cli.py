"""The command line: options arrive, errors are one line, pictures and reports are written."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ralu_cache import cli
from ralu_cache.generate import PICTURES, VIDEOS, Request, call_arguments, makes_videos, output_paths
from ralu_cache.models.embedded import EMBEDDED
from ralu_cache.report.table import Table
from ralu_cache.sweep.methods import Method
from tests.wan_pipelines import make_wan_pipeline

PROMPT = "a red circle on a blue background"


def run(*arguments: str, expect: int = 0) -> None:
    assert cli.main(arguments) == expect


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a failing command prints."""
    run(*arguments, expect=2)
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("ralu-cache: error: ")
    return lines[-1]


def test_help_is_light() -> None:
    code = "import sys\nfrom ralu_cache import cli\ncli._parser().format_help()\nprint('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_the_module_is_the_command() -> None:
    result = subprocess.run([sys.executable, "-m", "ralu_cache", "--help"], capture_output=True, text=True)
    assert result.returncode == 0
    for command in ("demo", "generate", "info"):
        assert command in result.stdout


def test_info_names_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    run("info")
    text = capsys.readouterr().out
    for part in ("torch 2.", "diffusers 0.", "FluxPipeline", "ralu-4x", "5/6/7", "latent-gradient", "SDPA", "cpu"):
        assert part in text
    assert "ralu-15x  steps 8/2, ends 0.65/1, shifts 3.3/1.4, Z 2.2, guided early" in text
    for part in ("teacache   threshold 0.4, ", "seacache   threshold 0.3, ", "taylorseer interval 3, ", "max_age None"):
        assert part in text
    assert "early      in the stages that aren't fine; without stages until t = 0.5" in text
    for family in ("flux (spatial 'ralu' is 'ralu-8x'): ", "wan (spatial 'ralu' is 'ralu-7x'): ", "ltx: "):
        assert f"  {family}" in text, "videos have another preset, and who has no stages none"


def test_generate_draws_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {name: tmp_path / name for name in ("picture.png", "run.json", "run.png")}
    run(
        *(
            "generate",
            "--prompt",
            PROMPT,
            "--num-images",
            "2",
            "--spatial",
            "ralu-7x",
            "--height",
            "64",
            "--width",
            "96",
        ),
        *("--out", str(files["picture.png"]), "--report", str(files["run.json"]), "--plot", str(files["run.png"])),
    )
    for index in range(2):
        with Image.open(tmp_path / f"picture-{index}.png") as picture:
            assert picture.size == (96, 64)
    report = json.loads(files["run.json"].read_text())
    assert (report["batch"], report["size"], len(report["steps"])) == (2, [8, 12], 10)
    assert files["run.png"].stat().st_size > 10_000
    assert "coarse" in capsys.readouterr().out


def test_generate_passes_both_parts_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(
        *("generate", "--prompt", PROMPT, "--spatial", "ralu-7x", "--temporal", "taylorseer:2", "--height", "64"),
        *("--width", "64", "--true-cfg-scale", "1", "--out", str(tmp_path), "--report", str(tmp_path / "run.json")),
    )
    report = json.loads((tmp_path / "run.json").read_text())
    assert (report["spatial"], report["temporal"]) == ("ralu-7x", "taylorseer:2")
    assert sum(stage["reused"] for stage in report["stages"]) > 0
    assert "by temporal" in capsys.readouterr().out


def test_generate_passes_guidance_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(
        *("generate", "--prompt", PROMPT, "--spatial", "ralu-7x", "--guidance", "early", "--height", "64"),
        *("--width", "64", "--out", str(tmp_path)),
    )
    assert "guided 5 of 10 steps" in capsys.readouterr().out
    request = Request("some/model", ["a"], spatial="none", temporal="teacache", guidance="early:0.65")
    assert request.method == Method(None, "teacache", "early:0.65")


def test_generate_can_leave_the_pipeline_alone(tmp_path: Path) -> None:
    run(
        *("generate", "--prompt", PROMPT, "--spatial", "none", "--height", "64", "--width", "64", "--steps", "2"),
        *("--dtype", "bfloat16", "--true-cfg-scale", "1", "--out", str(tmp_path)),
    )
    with Image.open(tmp_path / "0.png") as picture:
        assert picture.size == (64, 64)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--spatial", "ralu-9x"), ("ralu-9x", "ralu-4x")),
        (("--temporal", "magic"), ("magic", "None")),
        (("--temporal", "seacache:much"), ("seacache:much", "not a number")),
        (("--temporal", "seacache:-1"), ("threshold", "-1")),
        (("--spatial", "seacache"), ("seacache", "'+seacache'")),
        (("--guidance-scale", "3", "--true-cfg-scale", "2", "--height", "40"), ("40",)),
        (("--spatial", "none", "--report", "run.json"), ("--report", "--spatial", "--guidance")),
        (("--guidance", "late"), ("'late'", "early:0.65")),
        (("--guidance", "early:2"), ("early:2", "from 0 to 1")),
        (("--model", "no/such/folder"), ("no/such/folder",)),
    ],
)
def test_errors_are_one_line(
    options: tuple[str, ...],
    parts: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    line = failure(capsys, "generate", "--prompt", PROMPT, *options)
    for part in parts:
        assert part in line


@pytest.mark.parametrize(("option", "value"), [("--steps", "0"), ("--num-images", "-1"), ("--height", "x")])
def test_numbers_are_checked_before_anything_loads(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["generate", "--prompt", PROMPT, option, value])
    assert stop.value.code == 2
    assert option in capsys.readouterr().err


def test_traceback_shows_the_source() -> None:
    with pytest.raises(ValueError, match="ralu-9x"):
        cli.main(["--traceback", "generate", "--prompt", PROMPT, "--spatial", "ralu-9x"])


def test_demo_passes_on_what_was_given(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from ralu_cache import demo, demo_plans
    from ralu_cache.sweep import comparison

    plans: list[tuple[demo_plans.DemoPlan, Path]] = []
    monkeypatch.setattr(demo, "run_demo", lambda plan, out: plans.append((plan, out)))
    monkeypatch.setattr(comparison, "comparison_table", lambda summary: Table(("table",), []))
    monkeypatch.setattr(comparison, "caption", lambda summary: "as measured")
    run("demo", "--quick", "--seeds", "3", "5", "--methods", "ralu-5x", "+seacache:0.3", "--out", "there")
    assert [(plan.name, out) for plan, out in plans] == [
        (name, Path("there") / name) for name in ("tiny-flux", "tiny-sd3", "tiny-wan", "tiny-wan-unipc")
    ]
    assert [(plan.seeds, plan.methods, plan.prompts) for plan, _ in plans] == [
        ((3, 5), ("ralu-5x", "+seacache:0.3"), demo_plans.quick(plan).prompts) for plan in demo_plans.DEMOS
    ]
    plans.clear()
    run("demo", "--models", "tiny-sd3", "--steps", "20", "--size", "64", "--repeats", "2")
    ((full, default),) = plans
    assert (full.model.name, full.steps, full.size, full.repeats) == ("tiny-sd3", 20, 64, 2)
    assert full.prompts == demo_plans.DEMO.prompts and default == Path("out/demo/tiny-sd3")
    assert capsys.readouterr().out.count("| table |\n|---|\n\nas measured\n") == 5


def test_the_command_line_knows_the_embedded_models() -> None:
    from ralu_cache import demo_plans

    assert tuple(EMBEDDED) == cli.EMBEDDED
    assert tuple(plan.name for plan in demo_plans.DEMOS) == cli.DEMO_MODELS


class PlainPipeline:
    """Knows no guidance at all."""

    def __call__(
        self, prompt: Any, height: Any = None, num_images_per_prompt: int = 1, generator: Any = None
    ) -> None: ...


def test_options_that_a_pipeline_does_not_take_are_named() -> None:
    request = Request("some/model", ["a"], guidance_scale=3.0, steps=4, height=64)
    with pytest.raises(ValueError, match="PlainPipeline takes no --guidance-scale, --num-inference-steps"):
        call_arguments(request, PlainPipeline())


def test_pipelines_of_videos_are_known() -> None:
    pipe = make_wan_pipeline()
    call = call_arguments(Request("some/model", ["a", "b"], num_images=2, num_frames=5, frames_per_second=4), pipe)
    assert makes_videos(pipe) and not makes_videos(PlainPipeline())
    assert (call["num_frames"], call["num_videos_per_prompt"], len(call["generator"])) == (5, 2, 4)
    assert "num_images_per_prompt" not in call
    with pytest.raises(ValueError, match="PlainPipeline takes no --num-frames, --frames-per-second"):
        call_arguments(Request("some/model", ["a"], num_frames=5, frames_per_second=4), PlainPipeline())


def test_generate_draws_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(tmp_path / name) for name in ("film.gif", "run.json", "run.png")]
    run(
        *("generate", "--model", "tiny-wan", "--prompt", "a red circle moving right on a blue background"),
        *("--spatial", "ralu-7x", "--temporal", "taylorseer:2", "--out", files[0], "--report", files[1]),
        *("--plot", files[2], "--guidance-scale", "1"),
    )
    with Image.open(files[0]) as film:
        assert (film.n_frames, film.size, film.info["duration"]) == (9, (64, 64), 120), "in hundredths"
    report = json.loads(Path(files[1]).read_text())
    assert (report["size"], len(report["steps"])) == ([40, 8], 10)
    assert Path(files[2]).stat().st_size > 10_000 and "mixed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "out", "accepted"),
    [("tiny-wan", "film.mp4", ".gif"), ("tiny-wan", "a.PNG", ".gif"), ("tiny-flux", "a.gif", ".png")],
)
def test_endings_that_cannot_be_written_are_refused(
    model: str, out: str, accepted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = failure(capsys, "generate", "--model", model, "--prompt", PROMPT, "--out", str(tmp_path / out))
    assert out in line and accepted in line and not list(tmp_path.iterdir())


def test_a_sweep_of_videos_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = failure(
        capsys, "sweep", "--model", "tiny-wan", "--spatial", "none", "--temporal", "none", "--out", str(tmp_path)
    )
    assert "--model tiny-wan is a WanPipeline" in line and "tiny-flux" in line and not list(tmp_path.iterdir())


def test_each_picture_has_its_own_seed() -> None:
    request = Request("some/model", ["a", "b"], num_images=2, seed=7)
    generators = call_arguments(request, PlainPipeline())["generator"]
    assert [generator.initial_seed() for generator in generators] == [7, 8, 9, 10]


def test_output_paths() -> None:
    assert output_paths("v1.5", 2, PICTURES) == [Path("v1.5/0.png"), Path("v1.5/1.png")]
    assert output_paths("a/fox.jpg", 1, PICTURES) == [Path("a/fox.jpg")]
    assert output_paths("a/fox.jpg", 2, PICTURES) == [Path("a/fox-0.jpg"), Path("a/fox-1.jpg")]
    assert output_paths("a/fox.GIF", 2, VIDEOS) == [Path("a/fox-0.GIF"), Path("a/fox-1.GIF")]
    assert output_paths("folder", 1, VIDEOS) == [Path("folder/0.gif")]
    with pytest.raises(ValueError, match=r"--out fox.webm ends in .webm, but videos end in .gif; or name a folder"):
        output_paths("fox.webm", 1, VIDEOS)
