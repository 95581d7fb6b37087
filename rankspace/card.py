"""The README.md beside an exported adapter or merged checkpoint: what it is, from what, how made, how to load, its hash."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_HEAD = """---
base_model: {base_model}
library_name: {library}
tags: [rankspace, grpo, singular-value-adapter]
---

# {title}

{what}

| | |
|---|---|
| base model | `{base_model}` |
| fingerprint of the base | `{fingerprint}` |
| adapter | `{kind}`, {n_modules} modules, {size} numbers |
| sha256 of delta_S (fp32) | `{sha256}` |
{rows}
"""

_ADAPTER = """## Load

```python
import rankspace
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{base_model}", dtype="auto")
adapter = rankspace.load_adapter("path/to/this/directory", model)   # refuses another base model
```

As an ordinary checkpoint: `python -m rankspace export --delta delta_S.safetensors --model {base_model} --out merged`.

The singular bases are computed from the base weights when it is loaded; `delta_S` means nothing on other weights.
"""

_MERGED = """## Load

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/directory", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/directory")
```

or `vllm serve path/to/this/directory`. Nothing of rankspace is needed. `adapter/` holds the same change as `delta_S`
alone, to load on the base model.

Each weight is `W0 + U·diag(delta_S)·Vh`, summed in fp32 and rounded once to {dtype}, the dtype of the base: what lies
below the last bit of W0 is lost here, and only here.
"""


def adapter_card(facts: Mapping[str, Any]) -> str:
    """Card of a delta_S, from `SavedDelta.facts()`."""
    what = (
        "A change of singular values: every adapted matrix is `W0 + U·diag(delta_S)·Vh` with `W0 = U·diag(S)·Vh`; all else"
        " is the base model. Made with rankspace."
    )
    return _head(facts, "delta_S", "rankspace", what) + _ADAPTER.format(**facts)


def merged_card(facts: Mapping[str, Any], dtype: str) -> str:
    """Card of a merged checkpoint, from the same facts and the dtype of its weights ("bfloat16")."""
    what = "The base model with a trained singular-value adapter folded into its weights; an ordinary checkpoint."
    return _head(facts, "Merged checkpoint", "transformers", what) + _MERGED.format(dtype=dtype)


def _head(facts: Mapping[str, Any], title: str, library: str, what: str) -> str:
    modules = facts["modules"]
    rows = [f"| {key.replace('_', ' ')} | {_value(value)} |" for key, value in sorted(facts["trained"].items())]
    return (
        _HEAD.format(
            title=title,
            library=library,
            what=what,
            base_model=facts["base_model"],
            fingerprint=facts["fingerprint"] or "not recorded",
            kind=facts["kind"],
            n_modules=len(modules),
            size=sum(r for _, r in modules),
            sha256=facts["sha256"],
            rows="\n".join(rows) if rows else "| trained | not recorded |",
        )
        + "\n"
    )


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} `{inner}`" for key, inner in value.items())
    return f"`{value}`"
