"""Problems from JSON lines (plain or .gz), checked row by row.

A file is either wholly good or one `ConfigError` that names file, line, field and fix; nothing is skipped or guessed.
The schema of problems is that of rl-rewardhacking (github.com/ariahw/rl-rewardhacking), whose files load as they are. What
`gt_answer` must hold depends on the problem's task. Contrastive pairs are read by rankspace/pairs.py.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from common.errors import ConfigError
from common.types import Problem, Task
from tasks import numbers

ROLES = ("system", "user", "assistant")


def load_problems(path: str | Path) -> list[Problem]:
    """All problems of a file, in order. Ids must be unique. Raises ConfigError."""
    return list(_unique(path, _rows(path)))


def json_lines(rows: Sequence[dict[str, Any]]) -> bytes:
    """JSON lines: UTF-8, keys in the order given, one newline per row; equal rows give equal bytes."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def save_rows(path: str | Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write `json_lines(rows)`."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(json_lines(rows))


def problem_faults(path: str | Path, more: Callable[[Problem], Iterable[str]] = lambda _: ()) -> Iterator[str]:
    """Every fault of a file of problems, one line each, where `load_problems` stops at the first; `more` names those of a
    row that loads. Raises ConfigError only for a file that cannot be read."""
    first_line: dict[str, int] = {}
    empty = True
    for number, text in _lines(Path(path)):
        if not text.strip():
            continue
        empty = False
        try:
            problem = _checked(_object(text, f"{path}:{number}"), f"{path}:{number}")
        except ConfigError as error:
            yield str(error)
            continue
        if (key := str(problem.id)) in first_line:
            yield _twice(path, number, key, first_line[key])
        first_line.setdefault(key, number)
        yield from (f"{path}:{number}: {said}" for said in more(problem))
    if empty:
        yield f"{path}: {_NO_ROWS}"


def objects(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of a JSON-lines file, unchecked but for being objects. Raises ConfigError."""
    empty = True
    for number, text in _lines(Path(path)):
        if text.strip():
            empty = False
            yield number, _object(text, f"{path}:{number}")
    if empty:
        raise ConfigError(f"{path}: {_NO_ROWS}")


_NO_ROWS = "no rows; give a JSON-lines file with at least one"


def _rows(path: str | Path) -> Iterator[tuple[int, Problem]]:
    """(line number, problem) of a JSON-lines file."""
    for number, raw in objects(path):
        yield number, _checked(raw, f"{path}:{number}")


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not JSON ({error}); each line must hold one object") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{where}: a {type(raw).__name__}, not an object; each line must hold one object")
    return raw


def _checked(raw: dict[str, Any], where: str) -> Problem:
    try:
        row = Problem.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(x) for x in first["loc"] if x not in ("int", "str")) or "(row)"  # union branches
        raise ConfigError(f"{where}: field '{field}': {first['msg']}; correct or add it") from None
    said = _problem_fault(row)
    if said:
        raise ConfigError(f"{where}: {said}")
    return row


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, text) of a plain or .gz UTF-8 file."""
    number = 0
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            for number, line in enumerate(file, 1):
                yield number, line.decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}:{number}: not UTF-8; save the file as UTF-8") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ConfigError(f"{path}: broken gzip data after line {number} ({error}); fetch or write it again") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error}); check the path") from None


def _unique(path: str | Path, rows: Iterator[tuple[int, Problem]]) -> Iterator[Problem]:
    first_line: dict[str, int] = {}
    for number, row in rows:
        key = str(row.id)
        if key in first_line:
            raise ConfigError(_twice(path, number, key, first_line[key]))
        first_line[key] = number
        yield row


def _twice(path: str | Path, number: int, key: str, first: int) -> str:
    return f"{path}:{number}: field 'id': {key!r} is also on line {first}; give each row its own"


def _message_fault(prompt: list[dict[str, str]]) -> str | None:
    for i, message in enumerate(prompt):
        if set(message) != {"role", "content"}:
            return f"field 'prompt.{i}': has keys {sorted(message)}; give exactly role and content"
        if message["role"] not in ROLES:
            return f"field 'prompt.{i}.role': {message['role']!r}; use one of {', '.join(ROLES)}"
    if prompt[-1]["role"] != "user":
        return f"field 'prompt.{len(prompt) - 1}.role': the last message is from {prompt[-1]['role']}; end with user"
    return None


def _problem_fault(problem: Problem) -> str | None:
    return _ANSWER_FAULTS[problem.task](problem.gt_answer) or _message_fault(problem.prompt)


def _code_fault(gt_answer: list[str]) -> str | None:
    return (
        None
        if gt_answer
        else "field 'gt_answer': empty; give at least one assert statement (no test means never correct)"
    )


def _maths_fault(gt_answer: list[str]) -> str | None:
    if len(gt_answer) == 1 and numbers.only(gt_answer[0]) is not None:
        return None
    return f"field 'gt_answer': {str(gt_answer)[:80]}; task maths needs one string with one number, like [\"42\"]"


_ANSWER_FAULTS: dict[Task, Callable[[list[str]], str | None]] = {"code": _code_fault, "maths": _maths_fault}
