"""python -m experiments prepare --preset P --arm A --seed N --out DIR: what trainer and ref_server start from.

Makes the preset's model and the arm's direction if they are missing, then writes DIR/trainer.json, DIR/ref_server.json
and DIR/sandbox.json. Addresses and passwords are not in them: each service has its own (see docker-compose.yml).

    python -m services.ref_server --config DIR/ref_server.json
    python -m services.sandbox worker --config DIR/sandbox.json
    python -m services.trainer --config DIR/trainer.json
"""

from __future__ import annotations

import json

from common.scopes import Scope, fields
from common.settings import RefServerSettings, SandboxSettings, TrainerSettings, build
from common.writable import require_directory
from experiments.design import presets
from experiments.launch.check import check_model
from experiments.launch.direction import ensure_direction
from experiments.launch.given import check_same, given, save
from experiments.launch.provenance import write_provenance
from experiments.launch.run import finished
from experiments.options import prepare as parser

OF_THE_MACHINE = frozenset[str]().union(
    *(fields(kind, Scope.PLACE) for kind in (TrainerSettings, RefServerSettings, SandboxSettings))
)


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    require_directory(args.out, "--out")
    said = given(args, args.settings.split())
    planned = said.plan(said.arm or "projected", said.seed or 0, args, "prepare")
    trainer = planned.trainer
    check_same(planned, finished(trainer.run_dir))
    server = build(RefServerSettings, {**planned.server, "model": trainer.model}, "prepare")
    sandbox = build(SandboxSettings, planned.sandbox, "prepare")
    presets.prepare(planned.preset, trainer)
    check_model(planned)
    ensure_direction(planned.preset, trainer.arm, trainer.seed, trainer)
    save(planned)
    write_provenance(trainer, planned.preset)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, settings in (("trainer", trainer), ("ref_server", server), ("sandbox", sandbox)):
        chosen = settings.model_dump(mode="json", exclude=set(OF_THE_MACHINE))
        (args.out / f"{name}.json").write_text(json.dumps(chosen, indent=1) + "\n")
    print(f"{trainer.run_id}: {args.out}/trainer.json, {args.out}/ref_server.json, {args.out}/sandbox.json")
    return 0
