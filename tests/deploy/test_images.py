"""The Dockerfiles: linted, pinned, unprivileged, and holding just what their service imports."""

import ast
import re
import shlex
import shutil
import subprocess
import sys
from importlib import metadata

import pytest
from compose_tool import ROOT, tool

FILES = {service: ROOT / f"deploy/docker/{service}.Dockerfile" for service in ("sandbox", "ref_server", "trainer")}
MODULES = {"sandbox": "services.sandbox", "ref_server": "services.ref_server", "trainer": "services.trainer"}
OURS = ("common", "rankspace", "tasks", "services", "experiments")
# what provides a package of another name; fastapi is built on starlette and brings it
DISTRIBUTION = {"yaml": "pyyaml", "prometheus_client": "prometheus-client", "starlette": "fastapi"}


def instructions(service):
    """(name, rest) of each, with lines joined and comments left out; the last stage's alone under `final`."""
    text = re.sub(r"^#.*\n", "", FILES[service].read_text(), flags=re.M).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def final(service):
    found = instructions(service)
    last = max(i for i, (name, _) in enumerate(found) if name == "FROM")
    return found[last:]


def copied(service):
    """(sources, destination) of what the final stage takes from the build context."""
    for name, rest in final(service):
        parts = shlex.split(rest)
        if name == "COPY" and not parts[0].startswith("--from"):
            yield parts[:-1], parts[-1]


def lay_out(service, root):
    """The image's /app, from the same COPY lines and through the same .dockerignore rules."""
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    for sources, destination in copied(service):
        for source in sources:
            here, there = ROOT / source, root / destination
            if here.is_dir():
                shutil.copytree(here, there, ignore=ignored, dirs_exist_ok=True)
            else:
                target = there / here.name if destination.endswith("/") else there
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(here, target)
    return root


@pytest.mark.parametrize("service", FILES)
def test_hadolint_has_nothing_to_say(service):
    done = subprocess.run([tool("hadolint"), "--no-color", str(FILES[service])], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_hadolint_would_have_something_to_say(tmp_path):
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python:latest\nRUN pip install torch\n")
    done = subprocess.run([tool("hadolint"), str(bad)], capture_output=True, text=True)
    assert done.returncode == 1 and "DL3007" in done.stdout and "DL3013" in done.stdout


@pytest.mark.parametrize("service", FILES)
def test_two_stages_pinned_and_unprivileged(service):
    found = instructions(service)
    bases = [rest for name, rest in found if name == "FROM"]
    assert len(bases) == 2 and all(re.match(r"python:3\.11\.\d+-slim-bookworm", base) for base in bases)
    users = [rest for name, rest in final(service) if name == "USER"]
    assert users == ["10001:10001"]
    text = FILES[service].read_text()
    assert re.search(r"uv pip install .*-c \"?/requirements/(cpu|\$BACKEND)\.lock", text.replace("\\\n", ""))
    assert not re.search(r"(?i)(password|token|secret)\s*=", text)
    assert not [rest for name, rest in found if name == "ADD"]


@pytest.mark.parametrize("service", FILES)
def test_everything_copied_exists_and_is_let_through(service):
    allowed = [
        line[1:].removesuffix("/**") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    ]
    for name, rest in instructions(service):
        parts = shlex.split(rest)
        if name == "COPY" and not parts[0].startswith("--from"):
            for source in parts[:-1]:
                assert (ROOT / source).exists(), source
                assert source.split("/")[0] in allowed, f"{source} is kept out by .dockerignore"


@pytest.mark.parametrize("service", FILES)
def test_the_image_holds_what_its_code_imports(service, tmp_path):
    """Also inside functions: an import that is missing there would only be found in the middle of a run."""
    root = lay_out(service, tmp_path)
    wanted = requirements(service)
    for path in root.rglob("*.py"):
        if path.is_relative_to(root / "tasks") and service == "trainer":
            continue  # the makers of model and problems, for use by hand
        for name in imports(path):
            top = name.split(".")[0]
            if top in OURS:
                for module in files_of(name):
                    assert (root / module).is_file(), (
                        f"{path.relative_to(root)} imports {name}, whose {module} is not there"
                    )
            elif top not in sys.stdlib_module_names and not needless(service, path.relative_to(root), top):
                assert DISTRIBUTION.get(top, top) in wanted, f"{path.relative_to(root)} imports {name}"


def needless(service, path, top):
    """Imports of shared files on paths that this service does not take, each with its reason."""
    return (
        top == "argcomplete"  # for people at a shell; passed over where it is missing
        or (
            service == "trainer" and path.name == "live_services.py" and top == "dotenv"
        )  # reads .env, which an image has not
        or (service == "ref_server" and path.name == "ds_hook.py")  # the optimizer's side of the library
        or (service == "ref_server" and path.name in ("report.py", "__main__.py") and path.parts[0] == "rankspace")
        or (service == "ref_server" and top == "vllm")  # named by the Dockerfile, by backend
        or (path.name in ("smollm.py", "gguf_file.py") and top in ("gguf", "accelerate"))  # says how to get them
        or (path.name == "hub.py" and top == "huggingface_hub")  # transformers brings it
        or (
            service == "trainer" and path.name == "loggers.py" and top == "wandb"
        )  # optional; missed before a run starts
    )


def files_of(name):
    """Files of this repository that `name`, a module or something in one, comes from."""
    parts = name.split(".")
    found = [stem + tail for stem in ("/".join(parts), "/".join(parts[:-1])) for tail in (".py", "/__init__.py")]
    found = [file for file in found if (ROOT / file).is_file()]
    assert found or name in OURS, f"nothing here is called {name}"
    return found


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            for alias in node.names:
                yield f"{node.module}.{alias.name}" if node.module.split(".")[0] in OURS else node.module


def requirements(service):
    """Names in requirements/SERVICE.in and what it includes."""
    names = set()
    for line in (ROOT / f"requirements/{service}.in").read_text().splitlines():
        if line.startswith("-r "):
            names |= requirements(line[3:].strip().removesuffix(".in"))
        elif line and not line.startswith("#"):
            names.add(re.split(r"[=<>\[ ;]", line)[0])
    return names


def test_the_locks_agree_with_what_is_asked_for():
    for lock in ("cpu", "cuda"):
        text = (ROOT / f"requirements/{lock}.lock").read_text()
        for service in FILES:
            for name in requirements(service) - ({"torch"} if lock == "cpu" else set()):
                assert re.search(rf"^{re.escape(name)}==", text, re.M), f"{name} of {service}.in is not in {lock}.lock"
    assert "torch" not in requirements("sandbox")


def test_a_service_starts_from_its_image_alone(tmp_path):
    """--help of the default command, from the image's files and nothing else of ours."""
    for service in FILES:
        root = lay_out(service, tmp_path / service)
        done = subprocess.run(
            [sys.executable, "-m", MODULES[service], "--help"], cwd=root, capture_output=True, text=True
        )
        assert done.returncode == 0 and "usage" in done.stdout, f"{service}: {done.stderr}"


@pytest.mark.slow
def test_the_sandbox_image_grades_with_its_own_packages(tmp_path, redis_url):
    """A virtual environment from the image's requirements and lock, the image's files, a real group."""
    from samples import group

    from common import keys
    from common.queue import Queue, connect
    from common.types import GradedGroup

    root, venv = lay_out("sandbox", tmp_path / "app"), tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    uv = [tool("uv"), "pip", "install", "--quiet", "--python", str(venv / "bin/python")]
    subprocess.run([*uv, "-r", "requirements/sandbox.in", "-c", "requirements/cpu.lock"], check=True, cwd=ROOT)
    installed = {
        d.metadata["Name"].lower() for d in metadata.distributions(path=[next(venv.glob("lib/python3*/site-packages"))])
    }
    assert not installed & {"torch", "numpy", "vllm", "transformers", "deepspeed"}
    command = [str(venv / "bin/python"), "-m", "services.sandbox", "worker", "--redis-url", redis_url]
    worker = subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL)
    try:
        queue = Queue(connect(redis_url), "tester")
        queue.publish(keys.ROLLOUTS, group())
        taken = queue.consume(keys.graded(group().run_id), "tester", (GradedGroup,), wait_s=30.0)
        assert len(taken) == 1 and all(g.status == "graded" for g in taken[0].message.grades)
    finally:
        worker.terminate()
        worker.wait(20)
