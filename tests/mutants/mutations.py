"""What can be broken in a module, one change at a time; pure.

A mutant is the module's text with one decision, number, word of data or effect changed. What people alone read stays as
it is: docstrings, annotations, log lines, the words of errors, and any text with a space in it.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass

COMPARISONS: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
}
ARITHMETIC: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "*"),
    ast.Pow: ("**", "*"),
}
CALLED = {"min": "max", "max": "min", "any": "all", "all": "any", "sorted": "list"}


@dataclass(frozen=True, slots=True)
class Mutant:
    """A module with one change.

    :param function: where it is, as `Class.method`; empty outside of any
    :param line: the number of its first line
    :param before: that line
    :param after: what has become of it
    :param source: the whole module
    """

    function: str
    line: int
    before: str
    after: str
    source: bytes

    def __str__(self) -> str:
        return f"{self.line}: {self.before}  →  {self.after}"


@dataclass(frozen=True, slots=True)
class _Change:
    start: int
    end: int
    text: str


def mutants_of(source: bytes, left_out: frozenset[str] = frozenset()) -> list[Mutant]:
    """Return every mutant of a module that is Python still, in the order of their lines.

    :param left_out: functions, as `Class.method`, that only write text for people
    """
    reader = _Reader(source)
    reader.visit(ast.parse(source))
    mutants = {
        mutant.source: mutant
        for function, change in reader.changes
        if function not in left_out and _is_python((mutant := _apply(source, function, change)).source)
    }
    return sorted(mutants.values(), key=lambda mutant: mutant.line)


def _apply(source: bytes, function: str, change: _Change) -> Mutant:
    changed = source[: change.start] + change.text.encode() + source[change.end :]
    first = source.rfind(b"\n", 0, change.start) + 1
    line = source.count(b"\n", 0, first) + 1
    was, became = _line_at(source, first), _line_at(changed, first)
    if was == became:
        became = f"{was} […] {change.text or 'nothing'}"
    return Mutant(function, line, was, became, changed)


def _line_at(source: bytes, first: int) -> str:
    return source[first:].split(b"\n", 1)[0].decode().strip()


def _is_python(source: bytes) -> bool:
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


class _Reader(ast.NodeVisitor):
    """Collects the changes of a module with the function that each is in."""

    def __init__(self, source: bytes) -> None:
        self.changes: list[tuple[str, _Change]] = []
        self._source = source
        self._starts = [0]
        for line in source.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))
        self._names: list[str] = []
        self._returns_bool = False

    def _start(self, node: ast.expr | ast.stmt | ast.keyword) -> int:
        return self._starts[node.lineno - 1] + node.col_offset

    def _end(self, node: ast.expr | ast.stmt | ast.keyword) -> int:
        return self._starts[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0)

    def _text(self, node: ast.expr) -> str:
        return self._source[self._start(node) : self._end(node)].decode()

    def _put(self, start: int, end: int, text: str) -> None:
        self.changes.append((".".join(self._names), _Change(start, end, text)))

    def _replace(self, node: ast.expr | ast.stmt, text: str) -> None:
        self._put(self._start(node), self._end(node), text)

    def _swap(self, left: ast.expr, right: ast.expr, words: tuple[str, str]) -> None:
        """Put another operator between two operands."""
        gap = self._source[self._end(left) : self._start(right)].decode()
        at = gap.find(words[0])
        start = self._end(left) + len(gap[:at].encode())
        self._put(start, start + len(words[0]), words[1])

    def _negate(self, test: ast.expr) -> None:
        match test:
            case (
                ast.UnaryOp()
                | ast.Constant()
                | ast.Compare(ops=[ast.Eq() | ast.NotEq() | ast.In() | ast.NotIn() | ast.Is() | ast.IsNot()])
            ):
                pass  # turned round where it stands
            case _:
                self._replace(test, f"not ({self._text(test)})")

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._inside(node.name, node.body)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        outer, self._returns_bool = self._returns_bool, ast.unparse(node.returns or ast.Constant(0)) == "bool"
        for default in (*node.args.defaults, *node.args.kw_defaults):
            if default is not None:
                self.visit(default)
        self._inside(node.name, node.body)
        self._returns_bool = outer

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815 - ast gives the name

    def _inside(self, name: str, body: list[ast.stmt]) -> None:
        self._names.append(name)
        for statement in body:
            self.visit(statement)
        self._names.pop()

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._assigned([node.target], node)
        if node.value is not None:
            self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        if not (isinstance(node.targets[0], ast.Name) and node.targets[0].id.startswith("__")):
            self._assigned(node.targets, node)
            self.visit(node.value)

    def _assigned(self, targets: list[ast.expr], node: ast.stmt) -> None:
        if any(isinstance(each, ast.Attribute | ast.Subscript) for each in targets):
            self._replace(node, "pass")

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if words := ARITHMETIC.get(type(node.op)):
            self._swap(node.target, node.value, (f"{words[0]}=", f"{words[1]}="))
        self.visit(node.value)

    def visit_Expr(self, node: ast.Expr) -> None:
        called = node.value.value if isinstance(node.value, ast.Await) else node.value
        if isinstance(called, ast.Constant) or _is_log(called):
            return
        if not isinstance(called, ast.Yield):
            self._replace(node, "pass")
        self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is None or (isinstance(node.value, ast.Constant) and node.value.value is None):
            return
        if self._returns_bool:
            self._negate(node.value)
        else:
            self._replace(node.value, "None")
        self.visit(node.value)

    def visit_Raise(self, node: ast.Raise) -> None:
        self._replace(node, "pass")

    def visit_Break(self, node: ast.Break) -> None:
        self._replace(node, "continue")

    def visit_Continue(self, node: ast.Continue) -> None:
        self._replace(node, "break")

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        if not isinstance(node.body[0], ast.Raise):
            self._put(self._start(node.body[0]), self._end(node.body[-1]), "raise")
        for statement in node.body:
            self.visit(statement)

    def visit_If(self, node: ast.If | ast.While | ast.IfExp) -> None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        self._negate(node.test)
        self.generic_visit(node)

    visit_While = visit_If  # noqa: N815 - ast gives the name
    visit_IfExp = visit_If  # noqa: N815 - ast gives the name

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for test in node.ifs:
            self._negate(test)
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        operands = [node.left, *node.comparators]
        for left, operator, right in zip(operands, node.ops, node.comparators, strict=False):
            self._swap(left, right, COMPARISONS[type(operator)])
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if type(node.op) in ARITHMETIC:
            self._swap(node.left, node.right, ARITHMETIC[type(node.op)])
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        words = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            self._swap(left, right, words)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        word = "not" if isinstance(node.op, ast.Not) else "-"
        self._put(self._start(node), self._start(node) + len(word), "")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if _is_log(node):
            return
        if isinstance(node.func, ast.Name) and node.func.id in CALLED:
            self._replace(node.func, CALLED[node.func.id])
        arguments: list[ast.expr | ast.keyword] = sorted([*node.args, *node.keywords], key=self._start)
        for before, argument, after in zip([None, *arguments], arguments, [*arguments[1:], None], strict=False):
            if isinstance(argument, ast.keyword) and argument.arg is not None:
                start = self._start(argument) if before is None else self._end(before)
                self._put(
                    start, self._start(after) if before is None and after is not None else self._end(argument), ""
                )
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if not (isinstance(node.value, ast.Name) and node.value.id == "Literal"):
            self.generic_visit(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Leave it: it is for people, or read by nobody."""

    def visit_Constant(self, node: ast.Constant) -> None:
        match node.value:
            case bool():
                self._replace(node, str(not node.value))
            case int() | float():
                self._replace(node, repr(node.value + 1))
            case str() if " " not in node.value and "\n" not in node.value:
                self._replace(node, repr(f"~{node.value}"))
            case bytes():
                self._replace(node, repr(b"~" + node.value))


def _is_log(node: ast.expr) -> bool:
    """Whether a call writes a line for people, or only names a type."""
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Name(id="log"))) | ast.Call(func=ast.Name(id="TypeVar")):
            return True
    return False
