"""Rows of GSM8K (Cobbe et al. 2021, MIT) as problems of task maths. Pure.

    GSM8K       Problem
    question    prompt: the question and how to give the answer (tasks/maths/generate.py)
    answer      gt_answer: what stands after the last ####; canonical_solution: the whole, without the calculator's <<...>>

A row has no id of its own; it gets its place in the file, gsm8k-train-17.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from common.errors import ConfigError
from tasks import numbers
from tasks.maths.generate import prompt

REPOSITORY, CONFIGURATION = "openai/gsm8k", "main"
_CALCULATOR = re.compile(r"<<[^<>\n]*>>")


def convert(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    """One row as a Problem row with id `name`. ConfigError naming the field that is missing or cannot be used."""
    for field in ("question", "answer"):
        if not isinstance(row.get(field), str) or not row[field].strip():
            raise ConfigError(f"{name}: field '{field}' is missing or empty; is this a row of {REPOSITORY}?")
    solution, mark, last = row["answer"].rpartition("####")
    if not mark or numbers.only(last) is None:
        raise ConfigError(f"{name}: field 'answer': must end in #### and one number, ends in {row['answer'][-40:]!r}")
    return {
        "id": name,
        "task": "maths",
        "dataset": "gsm8k",
        "question": row["question"].strip(),
        "prompt": prompt(row["question"]),
        "gt_answer": [last.strip()],
        "canonical_solution": _CALCULATOR.sub("", solution).strip() + f"\n#### {last.strip()}",
        "hint": None,
        "prompt_metadata": {},
    }
