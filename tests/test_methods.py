"""The grammar of combined methods."""

import pytest

from ralu_cache.methods import Method, parse_method


@pytest.mark.parametrize(
    ("text", "spatial", "temporal"),
    [
        ("ralu-4x", "ralu-4x", None),
        ("ralu", "ralu", None),
        ("ralu-4x+seacache:0.3", "ralu-4x", "seacache:0.3"),
        ("ralu-4x + taylorseer", "ralu-4x", "taylorseer"),
        ("+teacache:0.4", None, "teacache:0.4"),
        ("+seacache:1e+1", None, "seacache:1e+1"),
        ("none+teacache", None, "teacache"),
        ("ralu-7x+none", "ralu-7x", None),
        ("none", None, None),
        ("none+none", None, None),
    ],
)
def test_names_are_split(text: str, spatial: str | None, temporal: str | None) -> None:
    assert parse_method(text) == Method(spatial, temporal)
    assert parse_method(text).uncached == Method(spatial, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ralu-9x", r"unknown spatial method 'ralu-9x'; accepted: none, ralu, ralu-4x"),
        ("seacache:0.3", r"a temporal policy alone is written '\+seacache:0.3'"),
        ("ralu-4x+magic", r"unknown temporal policy 'magic'"),
        ("ralu-4x+seacache:x", r"'x' is not a number"),
        ("ralu-4x+taylorseer:1.5", r"interval must be an integer of at least 1, got 1.5"),
        ("+teacache+seacache", r"'teacache\+seacache'"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_method(text)
