"""2,000 completions, three of eight of them traps, through real graders: every right program is graded right, every trap as
when it is alone, and no grader is lost."""

from __future__ import annotations

import random
import threading
import time

import pytest

from common import digests, keys
from common.heartbeat import alive
from common.queue import Queue
from common.types import GenerationRequest, Problem, SamplingPlan
from services.sandbox.attack_programs import RIGHT, WRONG
from services.sandbox.jail.executor import landlock_present
from services.sandbox.verdicts.grade import grade_completion
from services.sandbox.verdicts.oracle import Oracle
from services.trainer.rollouts import Rollouts
from tests import samples
from tests.chaos.load import GradersOnly

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not landlock_present(), reason="this kernel has no Landlock ABI 6: no full jail"),
]
GROUPS, SIBLINGS, TRAPS, GRADERS, RUN = 250, 8, 3, 4, "crowd"
TESTS = [f"assert Solution().addTwo(x = {x}) == {x + 2}" for x in (2, 10, -5)]
PROBLEM = Problem(
    id=1, prompt=[{"role": "user", "content": "x"}], gt_answer=TESTS, func_name="Solution().addTwo", setup_code=""
)
NAMED = {  # traps for the grader itself: what it cleans, waits for and restarts
    "kills_itself": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "terminates_itself": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "stops_itself": "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
    "aborts": "import os; os.abort()",
    "kills_parent": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
    "foreseen_names": "import os\nfor p in range(300):\n    open(f'.up-{p}-1', 'w')\nos.makedirs('a/b/c')",
    "closed_directories": "import os\nos.makedirs('a/' * 50)\nos.mkdir('../b')",
    "fills_scratch": "for i in range(30):\n    open(str(i), 'wb').write(bytes(4 << 20))",
    "many_files": "for i in range(9000):\n    open(str(i), 'w')",
    "endless_loop": "while True: pass",
    "sleeps": "import time; time.sleep(1000)",
    "ignores_alarms": "import signal, time\nsignal.signal(signal.SIGALRM, signal.SIG_IGN); time.sleep(1000)",
    "memory": "x = [0]\nwhile True: x += x",
    "forks": "import os\nwhile True: os.fork()",
    "threads": "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(9,), daemon=True).start()",
    "deep": "def f(): f()\nf()",
}
SLOW = {"endless_loop", "sleeps", "ignores_alarms", "stops_itself"}
COSTLY = {"garbage_flood", "ignores_all_signals", "non_daemon_thread_then_hang", "regex_hang"}  # tested elsewhere
ONCE = 3  # how often each of those that wait for a time limit comes


def programs(rng: random.Random) -> list[list[str]]:
    """The completions' programs, group by group; a right one is told apart by a number of its own."""
    traps = {**WRONG, **{name: f"{text}\nclass Solution: pass\n" for name, text in NAMED.items()}}
    waiting = [traps[name] for name in SLOW for _ in range(ONCE)]
    quick = [text for name, text in traps.items() if name not in SLOW | COSTLY]
    quick += [text for name, text in RIGHT.items() if name not in COSTLY]
    groups = []
    for number in range(GROUPS):
        mine = [rng.choice(quick) for _ in range(TRAPS - bool(waiting))] + ([waiting.pop()] if waiting else [])
        mine += [f"N = {number * SIBLINGS + i}\n{RIGHT['plain']}" for i in range(SIBLINGS - TRAPS)]
        rng.shuffle(mine)
        groups.append(mine)
    return groups


def request(number: int) -> GenerationRequest:
    plan = SamplingPlan(n=SIBLINGS, temperature=1.0, max_tokens=8, seed=number)
    return GenerationRequest(
        run_id=RUN, group_id=f"{RUN}/train/{number}/0", purpose="train", step=number, problem=PROBLEM, min_version=0,
        sampling=plan,
    )  # fmt: skip


def generate(queue: Queue, groups: list[list[str]], stop: threading.Event) -> None:
    while not stop.is_set():
        for delivery in queue.consume(keys.REQUESTS, keys.GENERATORS, (GenerationRequest,), 32, 0.2):
            asked = delivery.message
            texts = [f"```python\n{program}\n```" for program in groups[asked.sampling.seed]]
            group = samples.group(asked.group_id, asked.step, completions=1, run_id=RUN, problem=PROBLEM)
            group = group.model_copy(update={"completions": [samples.completion(text=text) for text in texts]})
            digests.seal(queue.client, group)
            queue.publish(keys.ROLLOUTS, group)
            queue.ack(keys.GENERATORS, delivery)


def test_every_right_program_is_graded_right_and_no_grader_is_lost(tmp_path):
    groups, stop, started = programs(random.Random(7)), threading.Event(), time.monotonic()
    found: dict[str, set] = {}
    with GradersOnly.start(tmp_path, "", graders=GRADERS, isolation="required") as stack:
        queue = Queue(stack.client("ref_server"), "gen-0", maxlen=256)
        generator = threading.Thread(target=generate, args=(queue, groups, stop), daemon=True)
        generator.start()
        rollouts = Rollouts(
            Queue(stack.client("trainer"), "trainer-0", maxlen=256, claim_idle_s=3600), RUN, 1200, lambda: None
        )
        try:
            requests = [request(number) for number in range(GROUPS)]
            rollouts.ask(requests)
            collected = rollouts.collect(requests)
            assert len(alive(stack.client(), "sandbox")) == GRADERS
            assert [process.popen.poll() for process in stack.processes] == [None] * len(stack.processes)
        finally:
            stop.set()
            generator.join()
    assert not collected.dropped and len(collected.groups) == GROUPS
    for graded in collected.groups:
        for completion, grade in zip(graded.group.completions, graded.grades, strict=True):
            program = completion.text.removeprefix("```python\n").removesuffix("\n```")
            found.setdefault(program, set()).add((grade.status, grade.oracle_correct))
    right = [program for group in groups for program in group if program.startswith("N = ")]
    assert len(right) == GROUPS * (SIBLINGS - TRAPS)
    assert {program: found[program] for program in right if found[program] != {("graded", True)}} == {}
    with Oracle() as oracle:
        for program in found.keys() - set(right):
            alone = grade_completion(PROBLEM, f"```python\n{program}\n```", oracle)
            assert found[program] == {(alone.status, alone.oracle_correct)}, (program, alone, found[program])
    print(
        f"{GROUPS * SIBLINGS} completions in {time.monotonic() - started:.0f} s, {len(found) - len(right)} kinds of traps"
    )
