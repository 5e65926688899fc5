"""What a prompt of the embedded model's scene grammar states: its attributes, each with the words that name it."""

from __future__ import annotations

import re
from collections.abc import Mapping

COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "white", "black")
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "heart")
PLACES = {
    "on the left": "left",
    "on the right": "right",
    "in the center": "center",
    "at the top": "top",
    "at the bottom": "bottom",
}
ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "count": ("one", "two"),
    "shape": SHAPES,
    "colour": COLOURS,
    "size": ("small", "large"),
    "place": tuple(PLACES.values()),
    "second shape": SHAPES,
    "second colour": COLOURS,
    "background": ("plain", "gradient", "striped", "checkered", "dotted"),
    "direction": ("horizontal", "vertical", "diagonal"),
    "background colours": COLOURS,
}
"""Every attribute with the classes that it can have. The second shape is the right one of two."""

Statement = dict[str, tuple[str, ...]]
"""The attributes that a prompt states. All have one class; the background's colours have one or two, in any order."""

_COLOUR, _SHAPE, _PLACE = ("|".join(words) for words in (COLOURS, SHAPES, PLACES))
_PROMPT = re.compile(
    rf"an? (?:(?P<size>small|large) )?(?P<colour>{_COLOUR}) (?P<shape>{_SHAPE})(?: (?P<place>{_PLACE}))?"
    rf"(?: and an? (?P<second_colour>{_COLOUR}) (?P<second_shape>{_SHAPE}))? on an? "
    rf"(?:(?:plain )?(?P<only>{_COLOUR})|(?P<start>{_COLOUR}) to (?P<end>{_COLOUR}) (?P<gradient>gradient)"
    rf"|(?P<first>{_COLOUR}) and (?P<other>{_COLOUR}) "
    r"(?:(?P<pattern>checkered|dotted)|(?:(?P<direction>horizontal|vertical|diagonal) )?(?P<striped>striped)))"
    r" background"
)


def read_prompt(prompt: str) -> Statement:
    """The attributes that a prompt states, in the order of `ATTRIBUTES`; what it leaves to chance is left out.

    Case and the number of spaces do not matter. Raises ValueError for a prompt that the grammar does not have.
    """
    match = _PROMPT.fullmatch(" ".join(prompt.lower().split()))
    if match is None or (match["second_shape"] and (match["size"] or match["place"])):
        raise ValueError(
            f"{prompt!r} is not a scene of the embedded model; accepted: 'a [small|large] COLOUR SHAPE [PLACE] on a "
            "BACKGROUND' or 'a COLOUR SHAPE and a COLOUR SHAPE on a BACKGROUND', as the README.md in "
            "ralu_cache/tiny_flux lists them"
        )
    words = match.groupdict()
    said: dict[str, str | None] = {
        "count": "two" if words["second_shape"] else "one",
        "shape": words["shape"],
        "colour": words["colour"],
        "size": words["size"],
        "place": PLACES[words["place"]] if words["place"] else None,
        "second shape": words["second_shape"],
        "second colour": words["second_colour"],
        "background": words["gradient"] or words["pattern"] or words["striped"] or "plain",
        "direction": words["direction"],
    }
    colours = (words[name] for name in ("only", "start", "end", "first", "other"))
    statement: Statement = {name: (value,) for name, value in said.items() if value}
    statement["background colours"] = tuple(dict.fromkeys(colour for colour in colours if colour))
    return statement
