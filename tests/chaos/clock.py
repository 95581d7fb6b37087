"""A clock that the faults can turn: clock.c as a library, made where there is a C compiler."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path


def shim(folder: Path) -> Path | None:
    """clock.c as a library in `folder`; None without a C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    library = (folder / "clock.so").resolve()
    source = Path(__file__).with_name("clock.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(source)], check=True)
    return library
