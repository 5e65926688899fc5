"""The changes that are tried: cosmic-ray's operators, one at one place of a file, without those that change nothing."""

from __future__ import annotations

import ast
import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator

OPERATORS = (  # of each kind the nearest neighbour: all others fail where it does, and oftener
    *(f"ReplaceBinaryOperator_{pair}" for pair in (
        "Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Mul", "Mod_FloorDiv", "Pow_Mul", "BitOr_BitAnd",
        "BitAnd_BitOr", "BitXor_BitOr", "LShift_RShift", "RShift_LShift",
    )),
    *(f"ReplaceComparisonOperator_{pair}" for pair in (
        "Eq_NotEq", "NotEq_Eq", "Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt", "Is_IsNot", "IsNot_Is",
    )),
    "ReplaceUnaryOperator_Delete_USub", "ReplaceUnaryOperator_Delete_Invert", "ReplaceUnaryOperator_Delete_Not",
    "AddNot", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceAndWithOr", "ReplaceOrWithAnd",
    "ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "NumberReplacer", "ZeroIterationForLoop",
)  # fmt: skip
_OPERATORS = {name: get_operator(f"core/{name}")() for name in OPERATORS}


@dataclass(frozen=True)
class Change:
    """One operator at one place. file: from the project's root. line, old, new: what a reader sees of it."""

    file: str
    operator: str
    line: int
    old: str
    new: str
    code: str

    @property
    def key(self) -> str:
        """Known by the text of the changed file: where the file changes otherwise, it is another."""
        return hashlib.sha256(f"{self.file}\n{self.code}".encode()).hexdigest()[:16]


class Places:
    """All places of a file at which an operator applies, in a random order of their own.

    What is drawn is made only then: to make a change takes longer than to try many a one.
    """

    def __init__(self, root: Path, file: str, seed: int = 0) -> None:
        self.file = file
        self.source = (root / file).read_text()
        nodes = list(ast_nodes(get_ast(self.source)))
        found = [
            (name, occurrence)
            for name in OPERATORS
            for occurrence in range(sum(1 for node in nodes for _ in _OPERATORS[name].mutation_positions(node)))
        ]
        self.order = random.Random(seed).sample(found, len(found))

    def __len__(self) -> int:
        return len(self.order)

    def changes(self) -> Iterator[Change]:
        """Without those that change nothing, or the same as one before."""
        seen = {_meaning(self.source)}
        for name, occurrence in self.order:
            code = mutate_code(self.source, _OPERATORS[name], occurrence)
            changed = None if code is None else _meaning(code)
            if code is not None and changed is not None and changed not in seen:
                seen.add(changed)
                yield Change(self.file, name, *_shown(self.source, code), code)


def _meaning(source: str) -> str | None:
    """The program without its annotations, which are never evaluated; None if it is none."""
    try:
        tree = ast.parse(source)
    except SyntaxError:  # "not" before an assignment expression
        return None
    for node in ast.walk(tree):
        for name in {"annotation", "returns"}.intersection(node._fields):
            setattr(node, name, None)
    return ast.dump(tree)


def _shown(source: str, code: str) -> tuple[int, str, str]:
    """The first line that differs: its number, and its text before and after."""
    pairs = zip(source.splitlines(), code.splitlines(), strict=False)
    return next((number, old.strip(), new.strip()) for number, (old, new) in enumerate(pairs, 1) if old != new)
