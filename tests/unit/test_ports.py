"""Ports that tests and demonstrations listen at."""

import os
import socket

from ipcbus.plumbing.ports import free_port


def test_processes_that_ask_at_the_same_moment_are_given_different_ones(monkeypatch):
    found = {}
    for pid in (1000, 1001):
        monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)
        found[pid] = {free_port() for _ in range(300)}
    assert not found[1000] & found[1001]


def test_none_is_given_again_soon():
    assert len({free_port() for _ in range(200)}) == 200


def test_one_that_is_taken_is_not_given():
    with socket.create_server(("127.0.0.1", free_port())) as taken:
        assert taken.getsockname()[1] not in {free_port() for _ in range(1000)}
