"""Ports for services about to start: below what the kernel gives to others, free, and different for those who ask at once."""

import socket

import pytest

from common import ports


def test_it_is_below_what_the_kernel_gives_to_others_and_can_be_listened_on():
    first_given = int(ports._EPHEMERAL.read_text().split()[0])
    for _ in range(50):
        port = ports.free_port()
        assert ports.LOWEST <= port < first_given
        with socket.create_server(("127.0.0.1", port)):
            pass


def test_a_taken_neighbour_moves_the_whole_block(monkeypatch):
    with socket.create_server(("127.0.0.1", ports.free_port())) as taken:
        port = taken.getsockname()[1]
        starts = iter([port - 2, port - 2, port + 1])
        monkeypatch.setattr(ports.random.SystemRandom, "randrange", lambda self, low, high: next(starts))
        assert ports.free_port(3) == port + 1


def test_those_who_ask_at_once_get_different_ones():
    assert len({ports.free_port() for _ in range(40)}) >= 38


def test_a_machine_that_gives_every_port_away_still_has_some(monkeypatch, tmp_path):
    wide = tmp_path / "range"
    wide.write_text("1024 65535")
    monkeypatch.setattr(ports, "_EPHEMERAL", wide)
    assert ports.LOWEST <= ports.free_port(2) < 65_535


def test_none_left_is_said(monkeypatch):
    monkeypatch.setattr(ports, "_is_free", lambda port: False)
    with pytest.raises(OSError, match="no 3 free ports from"):
        ports.free_port(3)
