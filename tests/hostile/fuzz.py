"""python -m tests.hostile.fuzz TARGET --seconds N: coverage-guided fuzzing of one door, with atheris (libFuzzer).

Every door either takes the bytes or says in one line of its own exception what is wrong. Anything else (another
exception, a hang over libFuzzer's limit, memory over its limit) ends the fuzzer with an error and leaves the input in
`crash-*`, `timeout-*` or `oom-*`. Seeds are valid inputs; coverage of our own modules guides the mutations.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["common", "rankspace", "services", "tasks"], enable_loader_override=False):
    from common import settings, types, wire
    from common.errors import ConfigError, WireError
    from rankspace import RankspaceError
    from rankspace import pairs as direction_pairs
    from services.sandbox.jail import channel
    from services.sandbox.verdicts import detector
    from tasks import dataset

from experiments.design.presets import PAIRS, PRACTICE_TRAIN
from tests.samples import broken, grade, graded, group

HANG_S, MEMORY_MB, LONGEST = 10, 2048, 20_000
KINDS = (types.GenerationRequest, types.RolloutGroup, types.GradedGroup, types.DeltaS, types.DeliveryProof)
EXAMPLE = {"prompt": [{"role": "user", "content": "```python\nstub\n\ndef run_tests():\n    assert 1\n```"}]}


def one_line(error: Exception) -> None:
    text = str(error)
    assert text and "\n" not in text and len(text) < 4000, f"not one line: {text[:200]!r}"


def wire_message(data: bytes, _: Path) -> None:
    try:
        message = wire.unpack(data, *KINDS)
    except WireError as error:
        one_line(error)
    else:
        packed = wire.pack(message)  # compared as bytes: a log-prob may be NaN, which equals nothing
        assert wire.pack(wire.unpack(packed, *KINDS)) == packed


def detect(data: bytes, _: Path) -> None:
    text = data.decode("utf-8", "surrogateescape")  # lone surrogates where it is no UTF-8
    seen = detector.inspect(EXAMPLE, text)
    assert isinstance(seen, detector.Extraction)


def job_answer(data: bytes, _: Path) -> None:
    """What a jailed program writes into its result pipe."""
    with contextlib.suppress(channel.ChannelError):
        channel.decode(data)


def _file(loader: Callable[[Path], object], expected: type[Exception]) -> Callable[[bytes, Path], None]:
    def target(data: bytes, folder: Path) -> None:
        path = folder / "rows.jsonl"
        path.write_bytes(data)
        try:
            loader(path)
        except expected as error:
            one_line(error)

    return target


def trainer_settings(data: bytes, folder: Path) -> None:
    path = folder / "settings.yaml"
    path.write_bytes(data)
    try:
        settings.build(settings.TrainerSettings, settings.read_settings_file(path))
    except ConfigError as error:
        one_line(error)


@atheris.instrument_func
def trap(data: bytes, _: Path) -> None:
    """A door with a fault behind a few comparisons, to see that faults are found."""
    for place, byte in enumerate(b"trap"):
        if data[place : place + 1] != bytes([byte]):
            return
    raise ValueError("sprung")


def _lines(path: Path, n: int = 4) -> list[bytes]:
    rows = path.read_bytes().splitlines(keepends=True)[:n]
    return [*rows, b"".join(rows)]


def _messages() -> list[bytes]:
    return [wire.pack(message) for message in (group(), graded([grade(), broken()]))]


def _answers() -> list[bytes]:
    rows = [json.loads(row) for row in Path(PAIRS).read_bytes().splitlines()[:3]]
    return [row[key].encode() for row in rows for key in ("hack", "clean")]


def _values() -> list[bytes]:
    values = (3, -(2**70), 1.5, "text", b"bytes", [1, 2], (1, "a"), {1: [None, True]}, {3, 4}, range(3), [0.5] * 9, 1j)
    return [channel.encode(value, 1 << 20) for value in values]


TARGETS: dict[str, tuple[Callable[[bytes, Path], None], Callable[[], list[bytes]]]] = {
    "wire": (wire_message, _messages),
    "detector": (detect, _answers),
    "channel": (job_answer, _values),
    "problems": (_file(dataset.load_problems, ConfigError), lambda: _lines(Path(PRACTICE_TRAIN))),
    "pairs": (_file(direction_pairs.load_pairs, RankspaceError), lambda: _lines(Path(PAIRS))),
    "trap": (trap, lambda: [b"tr"]),
    "settings": (trainer_settings, lambda: [b"steps: 3\narm: vanilla\nseed: 0\n", b'{"steps": 3, "run_id": "a"}']),
}


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m tests.hostile.fuzz", description=__doc__.splitlines()[0])
    p.add_argument("target", choices=sorted(TARGETS))
    p.add_argument("--seconds", type=int, default=60)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument(
        "--corpus", type=Path, help="folder with inputs to begin with and to add to (default: a temporary one)"
    )
    p.add_argument("--memory-mb", type=int, default=MEMORY_MB, help=f"what the fuzzer may take (default {MEMORY_MB})")
    args = p.parse_args(argv)
    # libFuzzer measures the peak of this process, and a peak outlives exec: a big parent (pytest at the end of a long
    # run) would count as ours. A forked child's begins anew.
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    target, seeds = TARGETS[args.target]
    folder = Path(tempfile.mkdtemp(prefix="fuzz"))
    corpus = args.corpus or folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(seeds()):
        (corpus / f"seed-{number}").write_bytes(data)
    options = [f"-max_total_time={args.seconds}", f"-timeout={HANG_S}", f"-rss_limit_mb={args.memory_mb}", f"-max_len={LONGEST}",
               f"-seed={args.seed}", "-print_final_stats=1", f"-artifact_prefix={folder}/", str(corpus)]  # fmt: skip
    atheris.Setup([sys.argv[0], *options], lambda data: target(data, folder))
    atheris.Fuzz()  # ends the process
    return 0


if __name__ == "__main__":
    sys.exit(main())
