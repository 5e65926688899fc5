"""What makes the command line a home: examples, completion, exit status, doctor, no colours in files."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ralu_cache import cli, doctor
from ralu_cache.examples import EXAMPLES, EXIT
from ralu_cache.report.table import Bold, Table, show

TEMPLATES = Path(__file__).parents[1] / ".github" / "ISSUE_TEMPLATE"


def commands() -> set[str]:
    text = cli._parser().format_help()
    return set(re.findall(r"^    ([a-z]+)", text, flags=re.MULTILINE))


def test_every_command_has_examples_that_parse(capsys: pytest.CaptureFixture[str]) -> None:
    assert EXAMPLES.keys() == commands()
    for name, lines in EXAMPLES.items():
        for line in lines:
            program, *words = shlex.split(line)
            assert program == "ralu-cache" and words[0] == name
            cli._parser().parse_args(words)
        with pytest.raises(SystemExit):
            cli._parser().parse_args([name, "--help"])
        assert lines[0] in capsys.readouterr().out


def test_exit_status_is_told_and_kept(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert EXIT in cli._parser().format_help()
    found = [[("one", None)], [("one", None), ("two", "something")]]
    for status, results in enumerate(found):
        monkeypatch.setattr(doctor, "checks", lambda request, results=results: iter(results))
        assert cli.main(["doctor", "--device", "cpu"]) == status
    text = capsys.readouterr().out
    assert "FAILED two: something" in text and "1 of the checks failed" in text and "torch SDPA" in text
    assert cli.main(["recommend", "--results", "missing.jsonl", "--speedup", "4"]) == 2
    with pytest.raises(SystemExit) as stop:
        cli.main(["sweep", "--no-such-option"])
    assert stop.value.code == 2

    def interrupted(device: str | None) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "diagnose", interrupted)
    assert cli.main(["doctor"]) == 130


def test_completion_knows_commands_and_options() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "ralu_cache", "--print-completion", "bash"], capture_output=True, text=True, check=True
    )
    assert all(name in result.stdout for name in commands()) and "--plain-steps" in result.stdout
    assert subprocess.run(["bash", "-n"], input=result.stdout, text=True, check=False).returncode == 0


def test_no_colours_where_there_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    show(Table(("a", "b"), [("one", Bold("2"))]))
    text = capfd.readouterr().out
    assert "\x1b" not in text and "presets" in text and "**2**" in text


@pytest.mark.slow
def test_doctor_finds_a_healthy_library(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert "all checks passed" in text and text.count("  ok ") == 6 and "FAILED" not in text


def test_a_missing_gradio_names_the_extra(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setitem(sys.modules, "gradio.themes", None)
    assert cli.main(["app"]) == 2
    assert "pip install 'ralu-cache[app]'" in capsys.readouterr().err


def test_a_bug_report_asks_for_the_doctor() -> None:
    assert "ralu-cache doctor" in (TEMPLATES / "bug.yml").read_text()
