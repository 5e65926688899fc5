"""Docstrings of this project as Markdown: `name: text` with what is indented below it becomes an item of a list."""

from __future__ import annotations

import re
from typing import Any

from griffe import Docstring, Extension

ITEM = re.compile(r"^ *(\w+(?:, \w+)*): (.*)$")
HEAD = re.compile(r"^[A-Z][\w ]*$")


def readable(text: str) -> str:
    """Lists in place of indented lines; a short line alone above indented ones becomes bold."""
    lines, made, in_item = text.split("\n"), [], False
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        deeper = len(below) - len(below.lstrip()) > len(line) - len(line.lstrip())
        if HEAD.match(line) and below.startswith("    "):
            made += ["", f"**{line}**", ""]
            in_item = False
        elif (item := ITEM.match(line)) and (in_item or deeper or not made or not made[-1].strip()):
            made += ([] if in_item else [""]) + [f"- **{item[1]}**: {item[2]}"]
            in_item = True
        elif in_item and line.startswith(" "):
            made[-1] += f" {line.strip()}"
        else:
            made += ([""] if in_item and line else []) + [line]
            in_item = False
    return "\n".join(made).strip()


class Readable(Extension):
    """Rewrites every docstring before it is rendered."""

    def on_object(self, *, obj: Any, **others: Any) -> None:
        if obj.docstring:
            obj.docstring = Docstring(readable(obj.docstring.value), parent=obj)
