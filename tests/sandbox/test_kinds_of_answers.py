"""Honest programs whose answers are more than lists and numbers, and wrong ones beside them: as plain Python says."""

from __future__ import annotations

import pytest

from services.sandbox.jail.executor import landlock_present
from services.sandbox.verdicts.oracle import Oracle

pytestmark = pytest.mark.skipif(not landlock_present(), reason="this kernel has no Landlock ABI 6: no full jail")

OLD_STUB = "class ListNode:\n    def __init__(self, x):\n        self.val = x\n        self.next = None\n"
PROGRAMS = [
    ("def f(n): return {i: 1 for i in range(n)}.keys()", "assert f(2) == {0, 1}", True),
    ("def f(n): return {i: 1 for i in range(n)}.keys()", "assert f(2) == [0, 1]", False),
    ("def f(n): return {i: 1 for i in range(n)}.items()", "assert f(1) == {(0, 1)}", True),
    ("def f(n): return {i: i for i in range(n)}.values()", "assert sorted(f(2)) == [0, 1]", True),
    ("def f(n): return {i: i for i in range(n)}.values()", "assert f(2) == [0, 1]", False),
    ("def f(n): return {i: i for i in range(n)}.keys() & {0}", "assert f(2) == {0}", True),
    ("def f(n): return deque(range(n), maxlen=2)", "assert f(3)[0] == 1 and len(f(3)) == 2", True),
    ("def f(n): return deque([n])", "assert f(1) == deque([1])", True),
    ("def f(n): return deque([n])", "assert f(1) == [1]", False),
    ("def f(n): d = deque([1, 2]); d.rotate(n); return d", "assert list(f(1)) == [2, 1]", True),
    ("def f(s): return Counter(s)", "assert f('aab').most_common(1) == [('a', 2)]", True),
    ("def f(s): return Counter(s)", "assert f('aab')['z'] == 0", True),
    ("def f(s): c = Counter(s); c['z'] = 0; return c", "assert f('ab') == Counter('ab')", True),
    ("def f(s): c = Counter(s); c['z'] = 0; return c", "assert f('ab') == {'a': 1, 'b': 1}", False),
    ("def f(s): return Counter(s) - Counter('a')", "assert f('aab') == Counter('ab')", True),
    ("def f(s): return OrderedDict((c, 1) for c in s)", "assert f('ab') == OrderedDict([('a', 1), ('b', 1)])", True),
    ("def f(s): return OrderedDict((c, 1) for c in s)", "assert f('ba') == OrderedDict([('a', 1), ('b', 1)])", False),
    ("def f(s): return OrderedDict((c, 1) for c in s)", "assert f('ba') == {'a': 1, 'b': 1}", True),
    ("def f(n): d = defaultdict(list); d[n].append(1); return d", "assert f(1)[1] == [1] and f(1)[2] == []", True),
    ("P = namedtuple('P', 'x y')\ndef f(n): return [P(n, 1)]", "assert f(3)[0].x == 3 and f(3) == [(3, 1)]", True),
    ("P = namedtuple('P', 'x y')\ndef f(n): return P(n, 1)", "assert f(3).y == 3", False),
    ("class P(NamedTuple):\n    x: int\n    y: int = 2\ndef f(n): return P(n)", "assert f(3)._asdict()['y'] == 2", True),
    ("def f(n): return 'x' * (1 << 20)", "assert len(f(1)) == 1 << 20\n" * 12, True),
    ("def f(n): return list(range(100_000))", "assert f(1)[-1] == 99_999\n" * 12, True),
    (
        "def f(n):\n    leaf = TreeNode(2)\n    return TreeNode(1, leaf, leaf)",
        "assert is_same_tree(f(0), tree_node([1, 2, 2]))",
        True,
    ),
    (
        "def f(n):\n    knot = TreeNode(1)\n    knot.left = knot\n    return knot",
        "assert is_same_tree(f(0), tree_node([1, 1]))",
        False,
    ),
    (
        OLD_STUB + "def f(head):\n    out = None\n    while head: head.next, out, head = out, head, head.next\n    return out",
        "assert is_same_list(f(list_node([1, 2, 3])), list_node([3, 2, 1]))",
        True,
    ),
    (
        OLD_STUB + "def f(head):\n    made = ListNode(head.val)\n    made.next = ListNode(7)\n    return made",
        "assert is_same_list(f(list_node([1, 2])), list_node([1, 7]))",
        True,
    ),
    ("import builtins\ndef f(n): return n + 1\nbuiltins.__dict__.clear()", "assert f(1) == 2", True),
    (
        "import builtins\ndef f(n): return n\nbuiltins.__dict__.update(dict.fromkeys(list(vars(builtins))))",
        "assert f(1) == 1",
        True,
    ),
    ("import os\ndef f(n): return n + 1\nos.pwrite = os.write = None", "assert f(1) == 2", True),
    ("from fractions import Fraction\ndef f(n): return Fraction(1, n)", "assert f(2) == 0.5", False),
]  # fmt: skip


@pytest.fixture(scope="module")
def oracle():
    with Oracle() as oracle:
        yield oracle


@pytest.mark.parametrize(("code", "test", "right"), PROGRAMS)
def test_as_plain_python_says(oracle, code, test, right):
    verdict = oracle.grade(code, [part for part in test.split("\n") if part], None, "f")
    assert verdict.correct is right and not verdict.weak, verdict
