"""A TCP port of loopback for a service that is about to start.

The kernel gives the local ends of outgoing connections, and whoever binds port 0, a port of its ephemeral range. A port
from there may be taken in the seconds until the service listens, by a connection to Redis for example. So ours come
from below that range, at random, so that several who choose at once choose differently.
"""

from __future__ import annotations

import errno
import random
import socket
from pathlib import Path

LOWEST = 16_384
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_USUAL_FIRST = 32_768  # of Linux, where the kernel does not say
_PORTS = 65_536
_FEWEST = 1_000  # to choose from
_TRIES = 200


def free_port(count: int = 1) -> int:
    """The first of `count` neighbouring ports that nobody listens on. Raises OSError when none was found."""
    end = _first_ephemeral()
    end = end if end >= LOWEST + _FEWEST else _PORTS  # the whole machine is ephemeral: then any port
    for _ in range(_TRIES):
        first = random.SystemRandom().randrange(LOWEST, end - count + 1)
        if all(_is_free(port) for port in range(first, first + count)):
            return first
    raise OSError(errno.EADDRINUSE, f"no {count} free ports from {LOWEST} to {end - 1}")


def _first_ephemeral() -> int:
    return int(_EPHEMERAL.read_text().split()[0]) if _EPHEMERAL.exists() else _USUAL_FIRST


def _is_free(port: int) -> bool:
    """On every address: a service of a container listens on all of them."""
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
