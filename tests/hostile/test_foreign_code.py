"""Nothing that comes from elsewhere is ever executed or unpickled, outside the jail. Read from the source.

Tensors come as safetensors or as checked fp32 bytes, messages as msgpack with a schema, settings through safe YAML.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("common", "rankspace", "tasks", "services", "experiments", "bench", "deploy")
IN_THE_JAIL = {
    "services/sandbox/jail/zygote.py",
    "services/sandbox/jail/runners.py",
    "services/sandbox/verdicts/published_job.py",
}

MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "jsonpickle"}
CALLS = {"eval", "exec", "__import__", "marshal.load", "marshal.loads", "torch.load", "torch.hub.load", "torch.jit.load",
         "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen", "runpy.run_path", "pd.read_pickle",
         "np.load", "numpy.load"}  # fmt: skip
KEYWORDS = {("trust_remote_code", True), ("shell", True), ("allow_pickle", True), ("weights_only", False)}
OURS = {
    (
        "services/sandbox/jail/executor.py",
        "marshal.loads",
    ): "the fork server's greeting, sent before it has run anything foreign",
    (
        "services/sandbox/jail/packages.py",
        "__import__",
    ): "packages of the deployment's allow-list, in the fork server, before it has run anything foreign",
    (
        "services/sandbox/verdicts/oracle.py",
        "marshal.loads",
    ): "the problem's setup code, compiled and marshalled by this process a moment ago",
    ("tasks/practice/easy.py", "eval"): "expressions of our own problem families",
    ("tasks/practice/generate.py", "eval"): "expressions of our own problem families",
}


def found(path, tree):
    """(line, what) of everything that could run or unpickle foreign bytes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, a.name.split(".")[0]) for a in node.names if a.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in MODULES:
            yield node.lineno, node.module.split(".")[0]
        elif isinstance(node, ast.Call):
            if (called := ast.unparse(node.func)) in CALLS:
                yield node.lineno, called
            for k in node.keywords:
                if isinstance(k.value, ast.Constant) and (k.arg, k.value.value) in KEYWORDS:
                    yield node.lineno, f"{k.arg}={k.value.value}"


def sources():
    return sorted(p for room in ROOMS for p in (ROOT / room).rglob("*.py") if "__pycache__" not in p.parts)


def test_nothing_foreign_is_run_or_unpickled_outside_the_jail():
    offences = []
    for path in sources():
        name = str(path.relative_to(ROOT))
        for line, what in found(path, ast.parse(path.read_text())):
            if name in IN_THE_JAIL or (name, what) in OURS:
                continue
            offences.append(f"{name}:{line}: {what}")
    assert not offences


@pytest.mark.parametrize("text", [
    "import pickle", "from pickle import loads", "import dill as d", "eval(x)", "torch.load(p)", "yaml.load(t)",
    "marshal.loads(b)", "f(trust_remote_code=True)", "run(c, shell=True)", "f(p, allow_pickle=True)", "f(p, weights_only=False)",
])  # fmt: skip
def test_the_search_finds_what_it_is_for(text):
    assert list(found(None, ast.parse(text)))


def test_addresses_to_listen_on_are_loopback_by_default():
    from common.settings import RefServerSettings, SandboxSettings, TrainerSettings

    hosts = {(k.__name__, n): f.default for k in (TrainerSettings, RefServerSettings, SandboxSettings)
             for n, f in k.model_fields.items() if n in ("host", "metrics_host")}  # fmt: skip
    assert len(hosts) == 3 and set(hosts.values()) == {"127.0.0.1"}
