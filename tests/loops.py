"""Where the loops of pipelines count their steps, and by which arguments of the call: told from their source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_CLASS = re.compile(r"^class (\w+)", re.MULTILINE), re.compile(r"^[^\s)]", re.MULTILINE)  # begin, and end
_METHOD = re.compile(r"^    def (\w+)\(", re.MULTILINE), re.compile(r"^    [^\s)]", re.MULTILINE)
_LAID = re.compile(r"(retrieve_timesteps|set_timesteps|get_timesteps|set_sigmas)$")
_STEPS = re.compile(r"\b(?:enumerate|range)\((?!.*callback).*(?:steps|step_matrix|sigmas)")
_LEVELS = re.compile(r"([a-z]+\.)*(\w*timesteps\w*|sigmas)$")
_BARE = (ast.expr_context, ast.operator, ast.cmpop, ast.unaryop, ast.boolop, ast.Constant)  # of which nothing depends
_LENGTHS = {"num_inference_steps", "num_timesteps", "num_warmup_steps"}
_NUMBERS = re.compile(r"(int|float|min|max|round|abs|len|math\.cos|np\.sqrt)$")
_PLAIN = re.compile(rf"{_NUMBERS.pattern}|(zip|enumerate|range|list|isinstance)$|np\.|torch\.|self\.generate_")


@dataclass(frozen=True)
class Count:
    """An expression that depends on the number of a step, or of steps. arguments: of the call, on which it depends."""

    pipeline: str
    text: str
    arguments: frozenset[str]


def pipelines(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The names of the pipelines under a folder that have a call of their own, and their methods' source by name."""
    for path in sorted(folder.rglob("pipeline*.py")):
        for name, text in _parts(path.read_text(), *_CLASS):
            if "    def __call__(" in text:
                yield name, {method: "class _:\n" + body for method, body in _parts(text, *_METHOD)}


def _parts(text: str, begin: re.Pattern[str], end: re.Pattern[str]) -> Iterator[tuple[str, str]]:
    for found in begin.finditer(text):
        last = end.search(text, found.end())
        yield found[1], text[found.start() : None if last is None else last.start()]


def counts(pipeline: str, written: Mapping[str, str], said: re.Pattern[str]) -> Iterator[Count]:
    """Where a pipeline's call counts steps once its schedule is laid out, within its methods that it calls too.

    said: what needn't be told.
    """
    body = _Body(written["__call__"])
    found = _counts(written, body, _LENGTHS, {name: {name} for name in body.parameters}, said)
    return (Count(pipeline, text, arguments) for text, arguments in found)


def _counts(
    written: Mapping[str, str], body: _Body, names: set[str], known: Mapping[str, set[str]], said: re.Pattern[str]
) -> Iterator[tuple[str, frozenset[str]]]:
    seen: set[ast.AST] = set()
    for leaf in body.leaves(names):
        node = body.reckoned(leaf)
        if node is None or node in seen:
            continue
        seen.add(node)
        called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        helper = called.removeprefix("self.")
        if isinstance(node, ast.Call) and helper != called and helper in written and not _LAID.match(helper):
            inner = _Body(written[helper])
            given = [*zip(inner.parameters[1:], node.args, strict=False)]
            given += [(word.arg, word.value) for word in node.keywords if word.arg is not None]
            passed = {name: _of(value, body.flows(known)) for name, value in given}
            counted = {name for name, value in given if value is leaf}
            yield from _counts(written, inner, counted, passed, said)
            continue
        text = f"{called}(... {ast.unparse(leaf)} ...)" if called else ast.unparse(node)
        if said.fullmatch(text) is None:
            of = (_of(one, body.flows(known)) for one in (node, *body.guards(node)))
            yield text, frozenset().union(*of)
    for cut in body.cuts():
        text = ast.unparse(cut)
        if cut not in seen and said.fullmatch(text) is None and (by := _of(cut.slice, body.flows(known))):
            yield text, frozenset(by)


class _Body:
    """A function's tree, with what it takes to go up in it."""

    def __init__(self, text: str) -> None:
        within = ast.parse(text).body[0]
        assert isinstance(within, ast.ClassDef)
        tree = within.body[0]
        assert isinstance(tree, ast.FunctionDef)
        self.parameters = [one.arg for one in (*tree.args.posonlyargs, *tree.args.args, *tree.args.kwonlyargs)]
        self._parents: dict[ast.AST, ast.AST] = {}
        self._loops: dict[str, list[ast.AST]] = {}  # over steps, by the name of the step's number
        self._read: list[tuple[str, ast.expr]] = []
        self._assigned: list[tuple[ast.expr, ast.expr]] = []
        self._flows: dict[str, set[str]] | None = None
        self._cuts: list[ast.Subscript] = []
        self._start = 0
        todo: list[ast.AST] = [*tree.body]
        for node in todo:
            for child in ast.iter_child_nodes(node):
                if not isinstance(child, _BARE):
                    self._parents[child] = node
                    todo.append(child)
            self._note(node)

    def _note(self, node: ast.AST) -> None:
        if (name := _name(node)) is not None:
            self._read.append((name, node))
        elif isinstance(node, ast.Call):
            self._note_call(node)
        elif isinstance(node, ast.Subscript) and _LEVELS.match(
            getattr(node.value, "attr", getattr(node.value, "id", ""))
        ):
            self._cuts.append(node)
        elif isinstance(node, ast.Assign):
            self._assigned += [(target, node.value) for target in node.targets]
        elif isinstance(node, ast.AugAssign):
            self._assigned.append((node.target, node.value))
        elif isinstance(node, ast.For | ast.comprehension):
            self._assigned.append((node.target, node.iter))
            if _STEPS.search(ast.unparse(node.iter)):
                target = node.target.elts[0] if isinstance(node.target, ast.Tuple) else node.target
                within = node if isinstance(node, ast.For) else self._parents[node]
                self._loops.setdefault(ast.unparse(target), []).append(within)

    def _note_call(self, node: ast.Call) -> None:
        called = _last(node.func)
        if called == "append" and isinstance(node.func, ast.Attribute):
            self._assigned.append((node.func.value, node.args[0]))
        elif called == "len" and _LEVELS.match(ast.unparse(node.args[0])):
            self._read.append(("num_timesteps", node))
        elif _LAID.match(called):
            self._start = min(self._start or node.lineno, node.lineno)

    def leaves(self, names: set[str]) -> Iterator[ast.expr]:
        """Where the number of a step, or of steps, is read."""
        names = names | self._loops.keys()
        for target, value in self._assigned:  # what is reckoned of it alone is one too
            number = isinstance(value, ast.BinOp | ast.Name) and value.lineno >= self._start
            picked = any(isinstance(one, ast.Subscript | ast.Call) for one in ast.walk(value))
            if number and isinstance(target, ast.Name) and names & _names(value) and not picked:
                names.add(target.id)
        for name, node in self._read:
            if name in names and node.lineno >= self._start and isinstance(getattr(node, "ctx", None), ast.Load | None):
                loops = self._loops.get(name)
                if loops is None or any(above in loops for above in self._above(node)):
                    yield node

    def cuts(self) -> list[ast.Subscript]:
        """Where levels are cut or picked, though not by the number of a step."""
        return [node for node in self._cuts if node.lineno >= self._start]

    def _above(self, node: ast.AST) -> Iterator[ast.AST]:
        while (above := self._parents.get(node)) is not None:
            yield above
            node = above

    def reckoned(self, leaf: ast.expr) -> ast.expr | None:
        """The arithmetic, comparison, index or call that the leaf goes into."""
        node, top = leaf, None
        for above in self._above(leaf):
            if isinstance(above, ast.Subscript) and node is above.slice:
                return above
            if isinstance(above, ast.Call) and not _NUMBERS.match(ast.unparse(above.func)):
                return top or (above if node is not above.func else None)
            if isinstance(above, ast.BinOp | ast.Compare):
                top = above
            elif not isinstance(above, ast.UnaryOp | ast.Call | ast.Slice | ast.keyword):
                break
            node = above
        return top

    def guards(self, node: ast.AST) -> Iterator[ast.expr]:
        """The conditions under which it is evaluated."""
        for above in self._above(node):
            if isinstance(above, ast.If | ast.IfExp | ast.While) and node is not above.test:
                yield above.test
            node = above

    def flows(self, known: Mapping[str, set[str]]) -> dict[str, set[str]]:
        """Of every name the arguments that it is made of; levels and their number are made of none."""
        if self._flows is None:
            self._flows = {name: {*of} for name, of in known.items()}
            plain = [(target, value) for target, value in self._assigned if _is_plain(value)]
            for _ in range(3):
                for target, value in plain:
                    of = _of(value, self._flows)
                    for name in _names(target):
                        if name not in _LENGTHS and not _LEVELS.match(name):
                            self._flows.setdefault(name, set()).update(of)
        return self._flows


def _name(node: ast.AST) -> str | None:
    """Of a variable, or of an attribute of the pipeline."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
        return node.attr.lstrip("_")
    return None


def _last(node: ast.AST) -> str:
    """The last word of a variable or an attribute, whatever it is one of."""
    return str(getattr(node, "attr", getattr(node, "id", "")))


def _names(node: ast.AST) -> set[str]:
    return {name for one in ast.walk(node) if (name := _name(one)) not in (None, "self")}


def _of(node: ast.AST, flows: Mapping[str, set[str]]) -> set[str]:
    return {argument for name in _names(node) for argument in flows.get(name, ())}


def _is_plain(value: ast.expr) -> bool:
    """Whether nothing is called in it but what makes numbers, lists and tensors, and the pipeline's own methods."""
    return all(_PLAIN.match(ast.unparse(node.func)) for node in ast.walk(value) if isinstance(node, ast.Call))
