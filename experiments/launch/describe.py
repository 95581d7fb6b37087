"""What --dry-run prints: every setting as it resolves, the files it needs, how much is generated. Starts and makes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.model_names import parse
from common.settings import RedisSettings, RefServerSettings, SandboxSettings, build
from experiments.design.plan import STARTED_WITH, Plan
from experiments.launch.given import text
from tasks import modes
from tasks.dataset import load_problems


def describe(planned: Plan) -> str:
    """YAML: `run` (files and sizes), then the settings of trainer, generator and sandbox with their defaults."""
    s = planned.trainer
    server = build(RefServerSettings, {**planned.server, "model": s.model}, "dry run")
    sandbox = build(SandboxSettings, planned.sandbox, "dry run")
    rollouts = (s.groups_per_step + s.refill) * s.group_size
    return text(
        {
            "run": {
                "run_dir": f"{s.run_dir} ({_state(s.run_dir)})",
                "model": f"{s.model} ({_weights(s.model)})",
                "train_problems": f"{s.train_problems} ({_problems(s.train_problems)})",
                "heldout_problems": f"{s.heldout_problems} ({_problems(s.heldout_problems)})",
                "pairs": f"{s.pairs} ({_there(s.pairs)})",
                "v_hack": f"{s.v_hack} ({_there(s.v_hack, 'is extracted first')})",
                "rollouts": f"{s.steps} steps x {s.groups_per_step} groups{f' + at most {s.refill}' if s.refill else ''} x "
                f"{s.group_size} = {s.steps * rollouts}",
                "sampled law": f"temperature {s.temperature:g}, top_p {s.top_p:g}, top_k off",
                "evaluations": f"{', '.join(m.name for m in modes.chosen(s.eval_modes, s.loophole))}; each {s.eval_problems} "
                f"problems x {s.eval_samples}",
                "tokens at most": s.steps * rollouts * s.max_tokens,
                "prompt tokens at most": server.max_model_len - s.max_tokens,
            },
            "trainer": _resolved(s, set(RedisSettings.model_fields)),
            "generator": _resolved(server, set(STARTED_WITH["generator"])),
            "sandbox": {**_resolved(sandbox, set(STARTED_WITH["sandbox"])), "workers": planned.graders},
        }
    )


def _resolved(settings: RedisSettings, without: set[str]) -> dict[str, Any]:
    return dict(settings.model_dump(mode="json", exclude=without))


def _there(path: Path | None, otherwise: str = "missing") -> str:
    return "none" if path is None else "there" if Path(path).is_file() else otherwise


def _state(run_dir: Path) -> str:
    path = run_dir / "status.json"
    if not path.is_file():
        return "new"
    said = json.loads(path.read_text(encoding="utf-8"))
    return f"{said.get('state')}, step {said.get('step')} of {said.get('steps')}"


def _weights(model: str) -> str:
    """Size of the checkpoint's tensors on disk, which is what one copy of them takes in memory in their own dtype."""
    named = parse(model)
    files = list(named.folder.glob("*.safetensors"))
    if not files:
        return f"not there yet: is brought to {named.folder} first"
    where = "" if named.kind == "folder" else f"in {named.folder}, "
    return f"{where}weights {sum(f.stat().st_size for f in files) / 2**30:.2f} GiB"


def _problems(path: Path) -> str:
    if not path.is_file():
        return "missing"
    try:
        return f"{len(load_problems(path))} problems"
    except ConfigError as error:
        return f"unusable: {error}"
