"""The house rules that a machine can check, read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("common", "rankspace", "tasks", "services", "experiments", "bench")
MAY_IMPORT = {
    "common": {"common"},
    "rankspace": {"rankspace"},
    "tasks": {"tasks", "common", "rankspace"},
    "services": {"services", "common", "rankspace", "tasks"},
    "experiments": {"experiments", "common", "rankspace", "tasks"},
}


def sources(room):
    return sorted(p for p in (ROOT / room).rglob("*.py") if "__pycache__" not in p.parts)


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


def edges():
    """{module: modules of ours that it imports}, anywhere in its text: at the top, in a function, for types."""
    files = {}
    for path in (p for room in (*ROOMS, "deploy") for p in sources(room)):
        parts = path.relative_to(ROOT).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return {name: set(reached(ast.parse(path.read_text()), name, path, files)) for name, path in files.items()}


def reached(tree, name, path, known):
    """The modules among `known` that a module's text names in its imports; relative imports are resolved."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:  # a submodule, or a name in the module
                yield from [m for m in (f"{base}.{alias.name}", base) if m in known][:1]


def cycles(graph):
    """Modules that reach themselves, with one way round each."""
    for start in sorted(graph):
        ways, seen = [[start]], set()
        while ways:
            way = ways.pop(0)
            if start in graph[way[-1]]:
                yield " -> ".join([*way, start])
                break
            new = graph[way[-1]] - seen
            seen |= new
            ways += [[*way, module] for module in sorted(new)]


def test_no_module_imports_itself_by_any_way_round():
    assert list(cycles(edges())) == []


def test_the_search_for_cycles_finds_those_in_functions(tmp_path):
    (tmp_path / "a.py").write_text("def f():\n    from p.b import x\n")
    (tmp_path / "b.py").write_text("if TYPE_CHECKING:\n    from .c import y\n")
    (tmp_path / "c.py").write_text("import p.a\nfrom p import d\n")
    (tmp_path / "d.py").write_text("import p.c.nothing\n")
    files = {f"p.{name}": tmp_path / f"{name}.py" for name in "abcd"}
    graph = {name: set(reached(ast.parse(path.read_text()), name, path, files)) for name, path in files.items()}
    assert graph == {"p.a": {"p.b"}, "p.b": {"p.c"}, "p.c": {"p.a", "p.d"}, "p.d": set()}
    assert next(cycles(graph)) == "p.a -> p.b -> p.c -> p.a" and len(list(cycles(graph))) == 3


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_point_down_only(room):
    for path in sources(room):
        for name in imported(path):
            top = name.split(".")[0]
            assert top not in ROOMS or top in MAY_IMPORT[room], f"{path.relative_to(ROOT)} imports {name}"


def test_no_service_imports_another():
    for path in sources("services"):
        own = path.relative_to(ROOT / "services").parts[0]
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == "services" and len(parts) > 1:
                assert parts[1] == own, f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("vllm", {"services/ref_server/engine.py"}),
        ("deepspeed", {"rankspace/ds_hook.py", "services/trainer/distributed.py", "services/trainer/policy.py"}),
        ("pickle", set()),
    ],
)
def test_one_file_each_touches_what_is_delicate(package, allowed):
    found = {
        str(path.relative_to(ROOT))
        for room in ROOMS
        for path in sources(room)
        for name in imported(path)
        if name.split(".")[0] == package
    }
    assert found <= allowed


@pytest.mark.parametrize("room", ["common", "tasks"])
def test_torch_stays_out_of(room):
    heavy = {"torch", "vllm", "transformers", "deepspeed"}
    for path in sources(room):
        if "organism" in path.parts:  # makes the bundled model
            continue
        assert not {n.split(".")[0] for n in imported(path)} & heavy, path


def test_the_sandbox_needs_no_torch():
    for path in sources("services/sandbox"):
        assert not {n.split(".")[0] for n in imported(path)} & {"torch", "vllm", "transformers", "rankspace"}, path


def test_no_bare_except_and_no_torch_load():
    for room in ROOMS:
        for path in sources(room):
            for node in ast.walk(ast.parse(path.read_text())):
                assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"{path}:{node.lineno}"
                called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
                assert called not in ("torch.load", "pickle.loads", "pickle.load"), f"{path}:{node.lineno}"


@pytest.mark.parametrize(
    "module",
    ["services.ref_server", "services.sandbox", "services.trainer", "rankspace", "tasks", "experiments", "bench"],
)
def test_help_loads_neither_torch_nor_vllm(module):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['{module}', '--help']\n"
        "try:\n"
        f"    runpy.run_module('{module}', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "heavy = {'torch', 'vllm', 'transformers', 'deepspeed'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-500:]
    assert "usage" in done.stdout.lower() or "python -m" in done.stdout


def test_no_two_test_files_share_a_basename():
    """Without __init__.py pytest imports each by its basename, and the second of a name fails, sometimes only in CI."""
    seen = {}
    for path in sorted((ROOT / "tests").rglob("*.py")):
        if path.name not in ("conftest.py", "__main__.py"):  # these are never imported by a bare name
            assert path.name not in seen, f"{path.relative_to(ROOT)} and {seen[path.name].relative_to(ROOT)}"
            seen[path.name] = path


def test_every_setting_is_read():
    """A field that nothing reads is an option that does nothing: `s.field`, `self.settings.field` and the like."""
    from pydantic import BaseModel

    from common import settings

    read = {
        node.attr
        for room in (*ROOMS, "deploy")
        for path in sources(room)
        if path != ROOT / "common" / "settings.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).split(".")[-1] in ("s", "settings")
    }
    classes = [c for c in vars(settings).values() if isinstance(c, type) and issubclass(c, BaseModel)]
    assert settings.TrainerSettings in classes
    for one in classes:
        assert not set(one.model_fields) - read, f"{one.__name__}: nobody reads {sorted(set(one.model_fields) - read)}"


def test_files_and_functions_stay_small():
    for room in (*ROOMS, "deploy", "tests"):
        for path in sources(room):
            text = path.read_text()
            assert text.count("\n") <= 400, f"{path.relative_to(ROOT)} has {text.count(chr(10))} lines"
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef) and room != "tests":
                    assert node.end_lineno - node.lineno < 60, f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
