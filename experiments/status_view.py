"""The page that `python -m experiments status` prints: services, streams, policy versions, runs. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from experiments.launch import live_services
from rankspace.progress import span

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

COLOURS = {
    "finished": "green",
    "running": "cyan",
    "preparing": "cyan",
    "coming": "cyan",
    "silent": "yellow",
    "stopped": "yellow",
    "alive": "green",
}
Rows = list[dict[str, Any]]


def page(stacks: Rows, runs: Rows | None, models: Rows | None = None) -> Group:
    """Everything, for rich to print. `stacks` as running.running gives them; `runs` None leaves the runs out; `models`:
    those on their way."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = []
    for stack in stacks:
        parts += [Text(f"stack {stack['name']}   {stack['redis_url']}", style="bold"), _services(stack["services"])]
        parts += [_streams(stack["streams"]), _policies(stack["policies"]), _dead(stack["dead"]), Text("")]
    if not stacks:
        parts.append(Text(f"no stack runs here: {live_services.STARTS}; one elsewhere: --redis-url"))
    if models:
        parts += [_models(models), Text("")]
    if runs is not None:
        parts.append(_runs(runs) if runs else Text("no runs yet"))
    return Group(*(part for part in parts if part is not None))


def _table(*names: str, right: tuple[str, ...] = ()) -> Table:
    from rich.table import Table

    view = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        view.add_column(name, justify="right" if name in right else "left")
    return view


def _state(name: str) -> Any:
    from rich.text import Text

    return Text(name, style=COLOURS.get(name, "red"))


def _services(rows: Rows) -> Any:
    view = _table("service", "name", "state", "claimed", right=("claimed",))
    for row in rows:
        view.add_row(row["service"], row["name"], _state(row["state"]), str(row["claimed"]))
    alive = {row["service"] for row in rows if row["state"] == "alive"}
    for kind in sorted({"ref_server", "sandbox"} - alive):
        view.add_row(kind, "-", _state("none alive"), "")
    return view


def _streams(rows: Rows) -> Any:
    view = _table("stream", "depth", "claimed", "oldest", right=("depth", "claimed", "oldest"))
    for row in rows:
        oldest = _age(row["oldest_claim_s"])
        view.add_row(row["stream"], str(row["depth"]), str(row["claimed"]), oldest)
    return view if rows else None


def _policies(rows: Rows) -> Any:
    view = _table("run", "trainer", "version", "generator", "has", "behind", right=("version", "has", "behind"))
    for row in rows:
        version = "-" if row["version"] is None else str(row["version"])
        first = (row["run"], _state(row["trainer"]), version)
        if not row["generators"]:
            view.add_row(*first, "-", "-", "-")
        for replica, has in row["generators"].items():
            behind = "-" if has["behind"] is None else str(has["behind"])
            view.add_row(*first, replica, str(has["version"]), behind)
    return view if rows else None


def _dead(dead: dict[str, Any]) -> Any:
    from rich.text import Text

    if not dead["count"]:
        return Text("no dead letters")
    return Text(f"{dead['count']} dead letters; the last one came from {dead['stream']}: {dead['reason']}", style="red")


def _models(table: Rows) -> Any:
    view = _table("model", "state", "age", "note", right=("age",))
    for row in table:
        view.add_row(row["model"], _state(row["state"]), _age(row["age_s"]), row["note"])
    return view


def _age(seconds: float | None) -> str:
    return "-" if seconds is None else span(seconds)


def _runs(table: Rows) -> Any:
    view = _table(
        "run",
        "state",
        "step",
        "hack %",
        "pass %",
        "left",
        "age",
        "note",
        right=("step", "hack %", "pass %", "left", "age"),
    )
    for row in table:
        if row["state"] == "unreadable":
            view.add_row(row["run"], _state("unreadable"), "", "", "", "", "", row["reason"])
            continue
        percent = [f"{100 * row[key]:.1f}" if row[key] is not None else "-" for key in ("hack", "pass")]
        step = "-" if row["step"] is None else f"{row['step']}/{row['steps']}"
        times = _age(row.get("left_s")), _age(row["age_s"])
        view.add_row(row["run"], _state(row["state"]), step, *percent, *times, row["reason"])
    return view
