"""The wheel: the package alone, and at work where only torch, what torch needs, and safetensors are installed."""

import ast
import email
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ALONE = Path(__file__).with_name("alone.py")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that nothing is left in the tree, with the setuptools that is installed."""
    source = tmp_path_factory.mktemp("source")
    for name in ("rankspace", "docs", "tasks"):  # tasks: to see that it stays out
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, source)
    return build("build_wheel", source, source / "dist")


def build(what, source, out):
    """`build_wheel` or `build_sdist` of `source`, with the setuptools that is installed."""
    out.mkdir(exist_ok=True)
    code = f"import sys; from setuptools import build_meta; print(build_meta.{what}(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(out)], cwd=source, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-800:]
    return out / done.stdout.split()[-1]


def test_the_sdist_builds_the_same_wheel(wheel, tmp_path):
    """What PyPI would serve as source holds all that the wheel needs, the page and the licence included."""
    packed = build("build_sdist", wheel.parents[1], tmp_path / "sdist")
    with tarfile.open(packed) as archive:
        archive.extractall(tmp_path, filter="data")
    again = build("build_wheel", tmp_path / packed.name.removesuffix(".tar.gz"), tmp_path / "wheel")
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        assert sorted(first.namelist()) == sorted(second.namelist())
        metadata = second.read(dist_info(second, "METADATA")).decode()
    assert "Description-Content-Type: text/markdown" in metadata and "License-Expression: Apache-2.0" in metadata
    assert "# rankspace, the library" in metadata


@pytest.fixture(scope="module")
def bare(wheel, tmp_path_factory):
    """A fresh venv that sees the wheel, torch and its own needs, safetensors, and nothing else; returns its bin folder."""
    home = tmp_path_factory.mktemp("bare")
    venv.create(home / "venv", with_pip=False, symlinks=True)
    (site,) = (home / "venv/lib").glob("python*/site-packages")
    for name in needed("torch", "safetensors"):
        for file in importlib.metadata.files(name) or ():
            top = file.parts[0]
            target = Path(importlib.metadata.distribution(name).locate_file(top))
            if top not in ("..", "__pycache__", "bin") and target.exists() and not (site / top).exists():
                (site / top).symlink_to(target)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        (entry,) = re.findall(
            r"rankspace = ([\w.]+):(\w+)", archive.read(dist_info(archive, "entry_points.txt")).decode()
        )
    script = home / "venv/bin/rankspace"
    script.write_text(
        f"#!{home}/venv/bin/python\nimport sys\nfrom {entry[0]} import {entry[1]}\nsys.exit({entry[1]}())\n"
    )
    script.chmod(0o755)
    return home / "venv/bin"


def needed(*names):
    """The distributions and what they require, without extras."""
    found = {}
    todo = list(names)
    while todo:
        name = todo.pop()
        for line in importlib.metadata.requires(name) or ():
            other = re.match(r"[\w.-]+", line)[0]
            if "extra ==" in line or other in found:
                continue
            try:
                importlib.metadata.distribution(other)
            except importlib.metadata.PackageNotFoundError:  # for another platform or Python
                continue
            todo.append(other)
        found[name] = True
    return list(found)


def dist_info(archive, name):
    (path,) = [n for n in archive.namelist() if n.endswith(f".dist-info/{name}")]
    return path


def run(*command, cwd):
    env = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "HOME": str(cwd)}
    return subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, timeout=280, env=env)


def test_the_wheel_holds_the_package_alone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"rankspace"}
    assert {n for n in names if n.startswith("rankspace/")} == {
        f"rankspace/{p.name}" for p in (ROOT / "rankspace").iterdir() if p.suffix == ".py" or p.name == "py.typed"
    }


def test_its_metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        meta = email.message_from_bytes(archive.read(dist_info(archive, "METADATA")))
    needs = meta.get_all("Requires-Dist")
    assert {re.match(r"[\w-]+", n)[0] for n in needs if "extra ==" not in n} == {"torch", "safetensors"}
    assert set(meta.get_all("Provides-Extra")) >= {"hf", "plot", "trl", "deepspeed"}
    assert meta["Name"] == "rankspace" and re.fullmatch(r"\d+\.\d+\.\d+", meta["Version"]) and meta["Summary"]
    assert "Typing :: Typed" in meta.get_all("Classifier")
    assert meta.get_payload().startswith("# rankspace, the library")


def test_the_package_imports_nothing_at_its_top_but_torch_and_safetensors():
    """Only trl.py may need more to be imported at all."""
    allowed = {"torch", "safetensors", "rankspace"} | set(sys.stdlib_module_names)
    for path in (ROOT / "rankspace").glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert {n.split(".")[0] for n in names} <= allowed, path.name


def test_all_of_the_method_works_with_torch_and_safetensors_only(bare, tmp_path):
    done = run(bare / "python", "-W", "error::ImportWarning", ALONE, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-1500:]
    assert done.stdout.splitlines()[-1] == "all of it works"


def test_the_command_line_is_there_and_names_the_extra_that_it_lacks(bare, tmp_path):
    for command in (["python", "-m", "rankspace"], ["rankspace"]):
        helped = run(bare / command[0], *command[1:], "--help", cwd=tmp_path)
        assert helped.returncode == 0 and "extract|validate|export|push" in helped.stdout, helped.stderr
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pairs.jsonl").write_text(
        '{"id": 1, "problem_id": 1, "prompt": [{"role": "user", "content": "x"}], "hack": "a", "clean": "b",'
        ' "split": "train"}\n'
    )
    lacking = run(bare / "rankspace", "extract", "--model", ".", "--pairs", "pairs.jsonl", "--out", "v", cwd=tmp_path)
    assert lacking.returncode == 2 and lacking.stderr.count("\n") == 1, lacking.stderr
    assert "pip install transformers" in lacking.stderr
    lacking = run(bare / "python", "-c", "import rankspace; rankspace.trl", cwd=tmp_path)
    assert "pip install 'trl>=1.0'" in lacking.stderr
