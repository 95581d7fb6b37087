"""python -m deploy.grafana: write deploy/grafana/dashboards/*.json anew. A test compares them with this code."""

from __future__ import annotations

import json
import sys
from pathlib import Path

FOLDER = Path(__file__).parent / "dashboards"


def render() -> dict[str, str]:
    """File name -> content."""
    from grafana_foundation_sdk.cog.encoder import JSONEncoder

    from deploy.grafana import experiment, grading, pipeline

    files = {}
    for module in (experiment, pipeline, grading):
        made = module.make().build()
        for number, panel in enumerate(made.panels, start=1):  # links to one panel name its number
            panel.id_val = number
        plain = json.loads(json.dumps(made, cls=JSONEncoder))
        for variable in plain["templating"].get("list", []):  # the SDK gives every variable what only intervals have
            for field in ("auto", "auto_count", "auto_min"):
                del variable[field]
        text = json.dumps(plain, indent=1, sort_keys=True, ensure_ascii=False)
        files[f"{module.__name__.rpartition('.')[2]}.json"] = text + "\n"
    return files


def main(argv: list[str]) -> int:
    if argv:
        print(__doc__)
        return 0 if argv[0] in ("-h", "--help") else 2
    for name, text in render().items():
        (FOLDER / name).write_text(text)
        print(FOLDER / name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
