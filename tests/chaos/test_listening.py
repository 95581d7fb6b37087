"""What a running system listens on, read from the kernel: loopback only."""

import psutil
import pytest

from experiments.design import presets
from experiments.launch.stack import Stack


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_services_listen_on_loopback_only(tmp_path):
    preset = presets.get("smoke")
    with Stack.start(tmp_path, presets.ORGANISM_MODEL, preset.server, graders=1, isolation="best_effort") as stack:
        for process in stack.processes:
            root = psutil.Process(process.popen.pid)
            for one in [root, *root.children(recursive=True)]:
                for socket in one.net_connections("inet"):
                    if socket.status == psutil.CONN_LISTEN:
                        assert socket.laddr.ip in ("127.0.0.1", "::1"), f"{process.name} listens on {socket.laddr}"
