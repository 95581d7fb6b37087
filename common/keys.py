"""Every Redis key, in one place. Streams are read through consumer groups (see queue.py).

requests ──> rollouts ──> graded:{run}           work, in flow order
delta:{run}:tensor:{version} then delta:{run}:version    the adapter: tensors first, version key last
proofs:{run}:{version}                           hash replica -> its answer to the push
siblings, siblings:{token}:claims and :grades    completions offered to idle graders (common/offers.py)
seals:{run}:{group}                              set: digests of the rollouts its generator made (common/digests.py)
dead                                             poison messages with their reason
heartbeat:{service}:{name}                       expires when the process is gone
lock:trainer:{run}                               one trainer a run
"""

PREFIX = "rs"

REQUESTS = f"{PREFIX}:requests"
ROLLOUTS = f"{PREFIX}:rollouts"
DEAD = f"{PREFIX}:dead"

SIBLINGS = f"{PREFIX}:siblings"

HEARTBEATS = f"{PREFIX}:heartbeat:"

GENERATORS = "generators"
GRADERS = "graders"
TRAINERS = "trainer"


def graded(run_id: str) -> str:
    return f"{PREFIX}:graded:{run_id}"


def delta_tensor(run_id: str, version: int) -> str:
    return f"{PREFIX}:delta:{run_id}:tensor:{version}"


def delta_version(run_id: str) -> str:
    return f"{PREFIX}:delta:{run_id}:version"


def proofs(run_id: str, version: int) -> str:
    return f"{PREFIX}:proofs:{run_id}:{version}"


def sibling_claims(token: str) -> str:
    return f"{SIBLINGS}:{token}:claims"


def sibling_grades(token: str) -> str:
    return f"{SIBLINGS}:{token}:grades"


def seals(run_id: str, group_id: str) -> str:
    return f"{PREFIX}:seals:{run_id}:{group_id}"


def heartbeat(service: str, name: str) -> str:
    return f"{HEARTBEATS}{service}:{name}"


def heartbeats(service: str) -> str:
    """Glob that matches every heartbeat of a service."""
    return f"{HEARTBEATS}{service}:*"


def proofs_of(run_id: str) -> str:
    """Glob that matches the proofs of every version of a run."""
    return f"{PREFIX}:proofs:{run_id}:*"


def trainer_lock(run_id: str) -> str:
    return f"{PREFIX}:lock:trainer:{run_id}"


def trainer_locks() -> str:
    """Glob that matches the lock of every run in training."""
    return f"{PREFIX}:lock:trainer:*"
