"""How many files the server allows itself to open: each connection at a door is one."""

from __future__ import annotations

import resource

import pytest

from backup_server.main import allow_open_files

ANY = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "then"),
    [
        (1024, 4096, 4096),
        (1024, 100_000, 8192),
        (1024, ANY, 8192),
        (1024, 1024, 1024),
        (10_000, 20_000, 10_000),
        (ANY, ANY, ANY),
    ],
)
def test_as_many_as_are_wanted_where_the_system_lets_it(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, then: int
) -> None:
    held = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: held[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: held.append(limits))
    allow_open_files(8192)
    assert held[-1] == (then, hard)
