"""What identifies a base model: sha256 over names, shapes and weight values of the adapted modules, in their order.

The same on every machine and in each dtype that holds the values exactly (`Basis.content` hashes them as fp32).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from .targets import Kind


class Fingerprint:
    """Fed module by module, so that a large model need not be held as a whole."""

    def __init__(self, kind: Kind = "antipasto"):
        # nothing for the first kind: fingerprints from before there was a second one stay valid
        self._digest = hashlib.sha256(b"" if kind == "antipasto" else kind.encode())

    def add(self, name: str, shape: Sequence[int], content: str) -> None:
        """name: of the module; shape: (out, in) of its weight; content: `Basis.content`."""
        self._digest.update(f"{name}|{tuple(shape)}|{content}\n".encode())

    def hexdigest(self) -> str:
        return self._digest.hexdigest()
