"""Which of a test's own values lie open in the job, and whether a check asks the program at all.

    x = [1, 17]; assert f(x[0]) - x[1] == 0     17 lies in the job beside the program, which was never given it
    got = f(1) == 17; assert got                so does the 17 here
    x = [3, 1]; f(x); assert x == [1, 3]        [3, 1] was given to the program: nothing is exposed

A value is *given* when it is an argument of a call of the program, by itself or under a name that is handed over whole.
Every other literal in the job may be an expected value: the check is then weak. Names are followed in the order of the
statements. Covers straight-line code, loops and branches without asserts. Functions and classes that a test defines run
beside the program with all they hold: exposed, whatever they do.
"""

from __future__ import annotations

import ast
import builtins

_BUILTINS = frozenset(dir(builtins))
_TRIVIAL = (None, True, False, ...)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)
Comprehension = ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp


class Trace:
    """Follows the steps of one test. trusted: names that are ours; own: names that the test binds; about: the names of
    the graded method (may be empty)."""

    def __init__(self, trusted: frozenset[str], own: frozenset[str], about: frozenset[str]) -> None:
        self.trusted, self.own, self.about = trusted, own, about
        self.open: dict[str, set[str]] = {}  # names of literals in the job -> the names that they were made from
        self.given: set[str] = set()
        self.answers: set[str] = set()  # names of what the program returned or has worked on
        self._exposed = False

    def exposed(self) -> bool:
        """After all steps: whether a value lies in the job that no call took."""
        return self._exposed or bool(self.open.keys() - self.given)

    def check(self, holes: list[ast.expr]) -> bool:
        """The holes of one assert: whether one of them asks the program."""
        seen = [_Value(self).read(hole) for hole in map(self._round, holes)]
        if any(value.constants or value.reads - self.given for value in seen):
            self._exposed = True  # evaluated beside the program, and no argument of it
        return any(value.asks for value in seen)

    def _round(self, hole: ast.expr) -> ast.expr:
        """One round of a comprehension that was split: what it iterates over holds only what the call takes."""
        if not isinstance(hole, ast.ListComp):
            return hole
        for name in (part for made in hole.generators for part in ast.walk(made.target)):
            if isinstance(name, ast.Name):
                self.own |= {name.id}
                self.answers.discard(name.id)
        return hole.elt

    def statement(self, node: ast.stmt) -> None:
        """One statement that runs in the job."""
        if isinstance(node, (ast.Import, ast.ImportFrom, ast.Pass, ast.Delete)):
            return
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets: list[ast.expr] = node.targets if isinstance(node, ast.Assign) else [node.target]
            if node.value is not None:
                self._assign(targets, node.value)
        elif isinstance(node, ast.AugAssign):
            self._assign([node.target], node.value, added=True)
        elif isinstance(node, ast.Expr):
            changed = _root(node.value) if isinstance(node.value, ast.Call) else None
            if changed is not None and changed.id in self.open and changed.id not in self.answers:
                self._assign([changed], node.value, added=True)  # x.append(3)
            else:
                self._expression(node.value)
        elif isinstance(node, (ast.For, ast.While, ast.If, ast.With)):
            self._block(node)
        else:
            self._exposed = True

    def _expression(self, node: ast.expr) -> _Value:
        value = _Value(self).read(node)
        if value.constants or value.reads - self.given:
            self._exposed = True
        return value

    def _assign(self, targets: list[ast.expr], node: ast.expr, added: bool = False) -> None:
        value = _Value(self).read(node)
        names = {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)} & self.own
        plain = all(isinstance(target, (ast.Name, ast.Tuple)) for target in targets)
        if value.asks or (added and names & self.answers):
            if value.constants or value.reads - self.given:
                self._exposed = True
            self.answers |= names
        else:
            for name in names:
                before = self.open.get(name, set()) if added or not plain else set()
                self.open[name] = before | value.reads
                self.given.discard(name)

    def _block(self, node: ast.For | ast.While | ast.If | ast.With) -> None:
        if isinstance(node, ast.For):
            if _is_range(node.iter):
                self.answers |= {part.id for part in ast.walk(node.target) if isinstance(part, ast.Name)}
            else:
                self._assign([node.target], node.iter)
        elif isinstance(node, ast.With):
            for item in node.items:
                self._expression(item.context_expr)
        else:
            self._expression(node.test)
        for statement in [*node.body, *getattr(node, "orelse", [])]:
            self.statement(statement)


class _Value:
    """One expression of the job: asks (a call of the program, or what it returned), constants that no call takes, and
    names of literals that are read and not given."""

    def __init__(self, trace: Trace) -> None:
        self.trace, self.asks, self.constants, self.reads = trace, False, False, set[str]()

    def read(self, node: ast.expr) -> _Value:
        self._visit(node, False)
        return self

    def _visit(self, node: ast.AST, given: bool) -> None:
        if isinstance(node, ast.Constant):
            self.constants |= not given and not any(node.value is one for one in _TRIVIAL)
        elif isinstance(node, ast.Name):
            self._name(node.id, given)
        elif isinstance(node, ast.Call):
            self._call(node, given)
        elif isinstance(node, ast.Subscript):
            self._part(node.value, given)
            if not isinstance(node.slice, ast.Constant):
                self._visit(node.slice, True)
        elif isinstance(node, ast.Attribute):
            self._part(node.value, given)
        elif isinstance(node, _COMPREHENSIONS):
            self._comprehension(node, given)
        elif isinstance(node, ast.Lambda):
            self.constants |= not given
        elif not isinstance(node, (ast.expr_context, ast.operator, ast.unaryop, ast.boolop, ast.cmpop)):
            compared = isinstance(node, ast.Compare)  # f(x == 17) asks for no 17
            for child in ast.iter_child_nodes(node):
                self._visit(child, given and not compared)

    def _part(self, node: ast.expr, given: bool) -> None:
        """What only a part is taken of: a name of a literal is read, and not given as a whole."""
        if isinstance(node, ast.Name) and node.id in self.trace.open:
            given_before = node.id in self.trace.given
            self.asks |= given_before and not given
            if not given:
                self.reads |= self._sources(node.id)
        else:
            self._visit(node, given)

    def _name(self, name: str, given: bool) -> None:
        trace = self.trace
        if name in trace.open and name not in trace.answers:
            if given:
                trace.given |= self._sources(name)
            else:
                self.asks |= name in trace.given
                self.reads |= self._sources(name)
        elif name in trace.answers or name not in trace.trusted | trace.own:
            self.asks = True

    def _sources(self, name: str) -> set[str]:
        found, todo = set[str](), [name]
        while todo:
            one = todo.pop()
            if one not in found:
                found.add(one)
                todo += self.trace.open.get(one, ())
        return found

    def _call(self, node: ast.Call, given: bool) -> None:
        arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
        root, trace = _root(node), self.trace
        literal = root is not None and root.id in trace.open and root.id not in trace.answers
        ours = literal or root is None or root.id in trace.trusted
        if root is not None and not ours:
            self.asks = True
            self.constants |= self._judges(root, arguments)
            ours = root.id in _BUILTINS  # eval("f(1) == 17"): no call of the program
        self._visit(node.func, given)
        for argument in arguments:
            self._visit(argument, given or not ours)

    def _judges(self, root: ast.Name, arguments: list[ast.expr]) -> bool:
        """check(f(1), 17) with a check of the program's: it is given the answer beside the value."""
        about = self.trace.about
        if not about or root.id in about | {"Solution"} | self.trace.answers:
            return False
        parts = [part for argument in arguments for part in ast.walk(argument)]
        return any(isinstance(part, ast.Name) and part.id in about for part in parts)

    def _comprehension(self, node: Comprehension, given: bool) -> None:
        """Its iterables are given when its call takes all that they yield."""
        trace, inner = self.trace, _Value(self.trace)
        targets = {name.id for part in node.generators for name in ast.walk(part.target) if isinstance(name, ast.Name)}
        saved = dict(trace.open), set(trace.given)
        trace.open.update({name: set() for name in targets})
        trace.given -= targets
        for name in ("elt", "key", "value"):
            if hasattr(node, name):
                inner._visit(getattr(node, name), given)
        taken = targets <= trace.given
        before = trace.given - targets
        trace.open, trace.given = saved[0], saved[1] | before
        self.asks |= inner.asks
        self.constants |= inner.constants
        self.reads |= inner.reads - targets
        for part in node.generators:
            if not _is_range(part.iter):
                self._visit(part.iter, given or taken)
            for condition in part.ifs:
                self._visit(condition, given)


def _root(node: ast.expr) -> ast.Name | None:
    """The name that a chain of calls, attributes and subscripts begins with."""
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Call)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node if isinstance(node, ast.Name) else None


def _is_range(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range"
