"""Every listed family passes every check of the conformance suite, and every built-in adapter is listed."""

from collections.abc import Callable

import pytest

from ralu_cache.adapters import find_adapter
from ralu_cache.adapters.registry import BUILT_IN
from tests.adapter_conformance import CHECKS, FAMILIES, LATER, LONG, Family

CASES = [
    pytest.param(
        check, family, id=f"{check.__name__.removeprefix('check_')}-{family}",
        marks=[pytest.mark.slow] * (check in LONG and family in LATER),
    )
    for check in CHECKS
    for family in FAMILIES + LATER
]  # fmt: skip


@pytest.mark.parametrize(("check", "family"), CASES)
def test_conformance(check: Callable[[Family], None], family: Family) -> None:
    check(family)


def test_every_built_in_adapter_is_listed() -> None:
    listed = {type(find_adapter(family.make())).__name__ for family in FAMILIES + LATER}
    assert listed == {path.partition(":")[2] for path in BUILT_IN}
