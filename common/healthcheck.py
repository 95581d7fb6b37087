"""python -m common.healthcheck URL: exit 0 when URL answers 200 within four seconds, else 1 and one line why.

For images without curl. Standard library only.
"""

from __future__ import annotations

import sys
import urllib.error
import urllib.request

TIMEOUT_S = 4.0


def reason(url: str) -> str:
    """'' when healthy, else what is wrong."""
    try:
        # An empty ProxyHandler: a health check must not leave the container through a proxy set in the environment.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=TIMEOUT_S) as answer:
            return "" if answer.status == 200 else f"status {answer.status}"
    except urllib.error.HTTPError as error:
        return f"status {error.code}: {error.read(200).decode(errors='replace')}"
    except (OSError, ValueError) as error:
        return str(error)


def main(argv: list[str]) -> int:
    if len(argv) != 1 or argv[0] in ("-h", "--help"):
        print(__doc__.strip())
        return 0 if argv and argv[0] in ("-h", "--help") else 2
    why = reason(argv[0])
    if why:
        print(f"{argv[0]}: {why}", file=sys.stderr)
    return 1 if why else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
