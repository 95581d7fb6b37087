"""A TCP proxy in front of Redis that can cut its connections in the middle of a message."""

from __future__ import annotations

import contextlib
import socket
import threading

CHUNK = 1 << 16


class Proxy:
    """Listens on a loopback port of its own and forwards to `target`. `cut_next(bytes)` arms one cut."""

    def __init__(self, target: int):
        self.target, self.cuts = target, 0
        self._lock, self._after, self._upstream = threading.Lock(), None, True
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_next(self, after: int, upstream: bool) -> None:
        """The next transfer longer than `after` bytes ends there, and its connection with it.

        upstream: on the way to Redis (a command torn apart), else on the way back (a reply that is lost).
        """
        with self._lock:
            self._after, self._upstream = after, upstream

    def close(self) -> None:
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            try:
                redis = socket.create_connection(("127.0.0.1", self.target), timeout=5)
                redis.settimeout(None)
            except OSError:  # Redis is away: so is the proxy
                client.close()
                continue
            for ends, upstream in (((client, redis), True), ((redis, client), False)):
                threading.Thread(target=self._pump, args=(*ends, upstream), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, upstream: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK):
                cut = self._due(data, upstream)
                sink.sendall(data if cut is None else data[:cut])
                if cut is not None:
                    break
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _due(self, data: bytes, upstream: bool) -> int | None:
        with self._lock:
            if self._after is None or upstream != self._upstream or len(data) <= self._after:
                return None
            after, self._after = self._after, None
            self.cuts += 1
            return after
