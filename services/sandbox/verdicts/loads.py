"""Which programs load the same whoever loads them, so that a load that did not end need not be sat out again.

    published program = setup code + completion + tests          the load: what runs before the first test

The ground truth, the hint and the prompt's own tests differ in their tests alone. Where the completion's code has used up
all the time or all the memory that a program gets before the first test (most often: a solution that loops, with a call of
it at module level), the others would do the same, test for test: nothing passed, compiled.

True of every program that cannot tell which tests stand after it. `repeats` is a sufficient condition, read from the text:
no clock, no randomness, and no way to a frame, a module's inside, a descriptor or text turned into code, by which a
program could look for its tests. What it does not recognise is run in full.

Covers: any text. Does not cover: set order (each fork server has its own hash seed), on which a load may depend; it is then
drawn once instead of once per program, with the same odds. A load whose memory comes within a few MB of the limit: fork
servers differ by as much.
"""

from __future__ import annotations

import ast
from functools import lru_cache

from services.sandbox.verdicts.detector import MAX_INSPECTED
from services.sandbox.verdicts.published import LOADING, ProgramResult

_MODULE_NAMES = (
    "__future__ abc bisect collections collections.abc copy cmath dataclasses decimal enum fractions functools heapq "
    "itertools math numbers queue re string typing"
)
_DUNDERS = ("__init__", "__name__", "__main__", "__doc__")
# Names and attributes, of whatever, with or without leading underscores: what reaches frames, modules, files, clocks,
# randomness or addresses, or turns text into code or into attribute access.
_REFUSED = (
    "breakpoint builtins compile ctypes delattr dir eval eval_type evaluate exec exit gc getattr getframe globals hash help "
    "id inspect input locals modules object open os posix quit random secrets setattr signal socket stderr stdin stdout "
    "subprocess sys threading time traceback types uuid vars warnings weakref "
    "attrgetter methodcaller Formatter Template vformat format_map get_type_hints ForwardRef make_dataclass singledispatch "
    "singledispatchmethod "
    "betavariate choice choices expovariate gauss getrandbits getstate lognormvariate normalvariate paretovariate randbytes "
    "randint randrange sample seed setstate shuffle triangular uniform vonmisesvariate weibullvariate Random SystemRandom "
    "datetime date now today perf_counter monotonic process_time sleep "
    "f_back f_builtins f_code f_globals f_lasti f_locals gi_frame gi_code cr_frame ag_frame tb_frame tb_next with_traceback"
)
_MODULES = frozenset(_MODULE_NAMES.split())
_NAMES = frozenset(_REFUSED.split())


def endless(result: ProgramResult) -> bool:
    """It ran out of time or memory in the program's own code, before the first test."""
    return (result.out_of_time or result.out_of_memory) and result.step == LOADING


@lru_cache(maxsize=256)
def repeats(program: str) -> bool:
    """Whether the program's load certainly does not depend on the tests after it, nor on time or chance."""
    if len(program) > MAX_INSPECTED:
        return False
    try:
        tree = ast.parse(program)
    except Exception:  # as in detector.py: the parser gives up in many ways
        return False
    return all(_plain(node) for node in ast.walk(tree))


def _plain(node: ast.AST) -> bool:
    match node:
        case ast.Import(names=names):
            return all(alias.name in _MODULES for alias in names)
        case ast.ImportFrom(module=module, names=names, level=level):
            return not level and module in _MODULES and all(_known(alias.name) for alias in names)
        case ast.Name(id=name):
            return _known(name)
        case ast.Attribute(value=value, attr="format"):  # "{0.gi_frame}".format(...) is attribute access
            return isinstance(value, ast.Constant) and isinstance(value.value, str) and "." not in value.value
        case ast.Attribute(value=value, attr=name):
            private = name.startswith("_") and not (isinstance(value, ast.Name) and value.id == "self")
            return _known(name) and (not private or name in _DUNDERS)
        case ast.MatchClass():  # its keywords are attribute access
            return False
    return True


def _known(name: str) -> bool:
    dunder = name.startswith("__") and name not in _DUNDERS
    return name.isascii() and not dunder and name.lstrip("_") not in _NAMES
