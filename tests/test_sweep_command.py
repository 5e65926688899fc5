"""`ralu-cache sweep` and `recommend`, from the command line to the page."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ralu_cache.cli import main
from ralu_cache.sweep import command, pareto
from ralu_cache.sweep.records import Results, read_results
from tests.sweep_results import fabricated, write_results

OPTIONS = [
    "--spatial", "none", "ralu-7x", "--plain-steps", "4", "--steps", "8", "--sizes", "64x64", "--rounds", "2",
    "--batch", "1",
]  # fmt: skip


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("command")
    prompts = folder / "prompts.txt"
    prompts.write_text("a red circle on a white background\na blue star on a black background\n")
    panels = pareto.panels
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pareto, "panels", lambda *given: panels(*given)[:2])  # all ten take as long as the sweep
        assert main(["sweep", *OPTIONS, "--prompts", str(prompts), "--out", str(folder / "out")]) == 0
    return folder / "out"


@pytest.mark.slow
def test_everything_comes_out(out: Path) -> None:
    results = read_results(out / "results.jsonl")
    assert [setting.method for setting in results.settings] == ["none", "steps:4", "ralu-7x"]
    assert len(results.records) == 6 and not any(record.error for record in results.records)
    likeness, drawn = ["psnr", "ssim", "ms_ssim", "spectrum"], ["attributes", "scenes", "probability", "shapes"]
    names = [*likeness, *drawn, "perceptual"]
    assert list(results.records[0].metrics) == names and list(results.records[0].features) == ["frechet"]
    assert results.header.full_steps == 8 and results.header.call["true_cfg_scale"] == 3.0
    assert {"table.csv", "table.md", "pareto.png", "strip.png", "index.html"} <= {path.name for path in out.iterdir()}
    captions = json.loads((out / "pictures" / "captions.json").read_text())
    assert captions == ["a red circle on a white background, seed 0", "a blue star on a black background, seed 0"]
    page = (out / "index.html").read_text()
    assert "a blue star on a black background, seed 0" in page and "data:image/png;base64," in page
    assert "http://" not in page and "https://" not in page, "the page stands alone"


@pytest.mark.slow
def test_the_same_command_has_nothing_left_to_do(
    out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []
    monkeypatch.setattr(command, "write_outputs", lambda path, folder: written.append(folder))  # it was looked at above
    before = (out / "results.jsonl").read_text()
    assert main(["sweep", *OPTIONS, "--prompts", str(out.parent / "prompts.txt"), "--out", str(out)]) == 0
    assert (out / "results.jsonl").read_text() == before and written == [out]
    assert main(["sweep", *OPTIONS[:-1], "2", "--true-cfg-scale", "1", "--out", str(out)]) == 2
    assert "was begun with call" in capsys.readouterr().err


@pytest.mark.slow
def test_a_setting_is_recommended(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = str(out / "results.jsonl")
    assert main(["recommend", "--results", results, "--min-quality", "psnr=5"]) == 0
    printed = capsys.readouterr().out
    assert "faster" in printed and "pipe(prompt, num_inference_steps=" in printed
    assert main(["recommend", "--results", results, "--speedup", "1000x"]) == 2
    assert "nothing measured fits; nearest is" in capsys.readouterr().err
    assert main(["recommend", "--results", results, "--min-quality", "beauty=1"]) == 2
    assert "unknown metric 'beauty'; measured: psnr" in capsys.readouterr().err


def test_a_better_peer_is_named_beside_the_recommendation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = fabricated(failing=None)
    of = {name: [r for r in results.records if r.setting.method == name] for name in ("none", "ralu-4x")}
    peer = [replace(r, seconds=r.seconds / 2, setting=replace(r.setting, method="peer:1")) for r in of["ralu-4x"]]
    records = [*of["none"], *of["ralu-4x"], *peer]
    path = str(write_results(tmp_path, Results(results.header, records)))
    assert main(["recommend", "--results", path, "--min-quality", "psnr=20"]) == 0
    told, use, note = capsys.readouterr().out.strip().split("\n\n")
    assert told.startswith("ralu-4x: 4.") and use.startswith('accelerate(pipe, spatial="ralu-4x")')
    assert note.startswith("note: peer:1, which is not this library's, is faster here: 8.")
    assert main(["recommend", "--results", path, "--min-quality", "psnr=45"]) == 0
    assert "note" not in capsys.readouterr().out, "the peer does not keep this quality"
    assert main(["recommend", "--results", path, "--speedup", "8x"]) == 2
    error = capsys.readouterr().err
    assert "nearest is ralu-4x: 4." in error and "note: peer:1, which is not this library's, fits" in error


def test_a_size_is_asked_for_where_there_are_several(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = fabricated(failing=None)
    larger = [replace(r, setting=replace(r.setting, width=256), seconds=r.seconds / 2) for r in results.records]
    path = str(write_results(tmp_path, Results(results.header, [*results.records, *larger])))
    asked = ["recommend", "--results", path, "--min-quality", "psnr=40"]
    assert main(asked) == 2
    assert "choose one with --size: 128x128, 256x128" in capsys.readouterr().err
    assert main([*asked, "--size", "128x128"]) == 0
    assert "width=128" in capsys.readouterr().out
    assert main([*asked, "--size", "large"]) == 2
    assert "--size takes WIDTHxHEIGHT in pixels such as 1024x768, got 'large'" in capsys.readouterr().err
