"""What is slow is marked as such, or the run tells, and fails in the end."""

from types import SimpleNamespace

import pytest

from tests import slowness
from tests.conftest import pytest_sessionfinish
from tests.slowness import SECONDS, unmarked


def report(name: str, seconds: float, *marks: str) -> SimpleNamespace:
    return SimpleNamespace(nodeid=name, user_properties=[(SECONDS, seconds)], keywords=dict.fromkeys(marks, 1))


def test_what_is_slow_and_not_marked() -> None:
    reports = [report("quick", 4.9), report("marked", 9.0, "slow"), report("slow", 5.1, "parametrize")]
    assert unmarked(reports) == ["slow took 5.1 s of processor time without the marker slow"]


def test_a_test_is_timed(request: pytest.FixtureRequest) -> None:
    before = slowness.processor_seconds()
    assert sum(number for number in range(100_000)) and slowness.processor_seconds() >= before
    assert SECONDS not in dict(request.node.user_properties), "not before its end"


@pytest.mark.parametrize(
    ("seconds", "worker", "code"), [(1.0, False, 0), (6.0, False, 0), (13.0, False, 1), (13.0, True, 0)]
)
def test_the_run_fails(seconds: float, worker: bool, code: int) -> None:
    written: list[str] = []
    terminal = SimpleNamespace(
        stats={"passed": [report("a", seconds)]}, write_line=lambda text, red: written.append(text)
    )
    config = SimpleNamespace(pluginmanager=SimpleNamespace(get_plugin=lambda name: terminal))
    if worker:
        config.workerinput = {}
    session = SimpleNamespace(config=config, exitstatus=0)
    pytest_sessionfinish(session)
    assert session.exitstatus == code and bool(written) == (seconds > 5 and not worker)
