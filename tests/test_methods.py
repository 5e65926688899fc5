"""The grammar of combined methods."""

import pytest

from ralu_cache.sweep.methods import Method, parse_method


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
    ("text", "method"),
    [
        ("ralu-4x+teacache:0.4+guidance=early", Method("ralu-4x", "teacache:0.4", "early")),
        ("ralu-4x+guidance=early+teacache:0.4", Method("ralu-4x", "teacache:0.4", "early")),
        ("+guidance=early:0.65", Method(None, None, "early:0.65")),
        ("ralu-7x + guidance=early", Method("ralu-7x", None, "early")),
        ("none+none+guidance=all", Method(None, None, "all")),
        ("ralu-7x+seacache:1e+1+guidance=early", Method("ralu-7x", "seacache:1e+1", "early")),
        ("ralu-7x+none+guidance=none", Method("ralu-7x")),
        ("+guidance=", Method()),
        ("ralu-12x+forecast:1/2+solver=multistep", Method("ralu-12x", "forecast:1/2", None, "multistep")),
        ("+solver=dpm+guidance=early", Method(None, None, "early", "dpm")),
        ("+solver=none", Method()),
    ],
)
def test_guidance_is_a_part_of_its_own(text: str, method: Method) -> None:
    assert parse_method(text) == method
    assert parse_method(text).uncached == Method(method.spatial, None, method.guidance, method.solver)
    assert parse_method(str(method)) == method


def test_a_method_is_written_as_it_is_read() -> None:
    assert str(Method()) == "none" and Method().parts == {}
    whole = Method("ralu-4x", "teacache:0.4", "early")
    assert str(whole) == "ralu-4x+teacache:0.4+guidance=early" and str(whole.uncached) == "ralu-4x+guidance=early"
    assert whole.parts == {"spatial": "ralu-4x", "temporal": "teacache:0.4", "guidance": "early"}
    assert Method(None, "teacache").parts == {"temporal": "teacache"} and str(Method("ralu-4x")) == "ralu-4x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ralu-9x", r"unknown spatial method 'ralu-9x'; accepted: none, ralu, ralu-4x"),
        ("seacache:0.3", r"a temporal policy alone is written '\+seacache:0.3'"),
        ("guidance=early", r"a part for guidance alone is written '\+guidance=early'"),
        ("ralu-4x+magic", r"unknown temporal policy 'magic'.* guidance is written '\+guidance=early'"),
        ("ralu-4x+teacache+magic", r"unknown temporal policy 'magic'"),
        ("ralu-4x+early", r"unknown temporal policy 'early'.* guidance is written '\+guidance=early'"),
        ("ralu-4x+seacache:x", r"'x' is not a number"),
        ("ralu-4x+taylorseer:1.5", r"interval must be an integer of at least 1, got 1.5"),
        ("+teacache+seacache", r"'\+teacache\+seacache' has two temporal parts, 'teacache' and 'seacache'"),
        ("+guidance=early+guidance=all", r"has two guidance parts, 'early' and 'all'"),
        ("+guidance=late", r"unknown guidance 'late'; accepted: None, 'all', 'early'"),
        ("+guidance=early:2", r"guidance 'early:2': after the colon stands a time t from 0 to 1"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_method(text)
