"""python -m experiments prepare --preset P --arm A --seed N --out DIR: what trainer and ref_server start from.

Makes the preset's model and the arm's direction if they are missing, then writes DIR/trainer.json and
DIR/ref_server.json. Addresses and passwords are not in them: each service has its own (see docker-compose.yml).

    python -m services.ref_server --config DIR/ref_server.json
    python -m services.trainer --config DIR/trainer.json
"""

from __future__ import annotations

import json

from common.settings import RefServerSettings, TrainerSettings, build, parse_assignments
from experiments.design import presets
from experiments.launch.run import ensure_direction, write_provenance
from experiments.options import prepare as parser

OF_THE_MACHINE = frozenset({"redis_url", "redis_username", "redis_password_file", "admin_token_file", "host", "port",
                            "replica", "metrics_host", "metrics_port"})  # fmt: skip


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    free = parse_assignments(args.settings.split())
    values = presets.resolve(args.preset, args.arm, args.seed, free, args.runs)
    trainer = build(TrainerSettings, values, "prepare")
    server = build(RefServerSettings, {**presets.get(args.preset).server, "model": trainer.model}, "prepare")
    presets.prepare(args.preset, trainer)
    ensure_direction(args.preset, args.arm, args.seed, trainer)
    trainer.run_dir.mkdir(parents=True, exist_ok=True)
    write_provenance(trainer, args.preset)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, settings in (("trainer", trainer), ("ref_server", server)):
        chosen = settings.model_dump(mode="json", exclude=set(OF_THE_MACHINE))
        (args.out / f"{name}.json").write_text(json.dumps(chosen, indent=1) + "\n")
    print(f"{trainer.run_id}: {args.out}/trainer.json, {args.out}/ref_server.json")
    return 0
