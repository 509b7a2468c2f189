"""A storage host over SSH that is away, is another, or refuses. With a real sshd."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import asyncssh
import pytest

from tests.support.storage_host import Sshd, running_sshd
from transports.errors import (
    PeerIdentityError,
    PermanentTransportError,
    TransientTransportError,
)
from transports.storage_systems import snapshot_directories
from transports.storage_systems.base import StorageAccess, split_address
from transports.storage_systems.snapshot_directories import done
from transports.storage_systems.ssh import SshHost, host_fingerprint
from transports.testing.storage_systems import NAME
from transports.vsphere.model import Secret


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with running_sshd(tmp_path_factory.mktemp("ssh")) as sshd:
        yield sshd


@pytest.fixture
def host(sshd: Sshd) -> SshHost:
    return SshHost(
        host="127.0.0.1",
        port=sshd.port,
        fingerprint=sshd.fingerprint,
        user="root",
        private_key=Secret(sshd.private_key),
    )


def look(host: SshHost, *words: str) -> str:
    with host.session() as shell:
        return done(shell.run(words))


def test_words_stay_words(host: SshHost, tmp_path: Path) -> None:
    hostile = f"a b'\"$(touch {tmp_path}/bad)`;|&\n*"
    assert look(host, "printf", "%s|", hostile, "two") == f"{hostile}|two|"
    assert not (tmp_path / "bad").exists()


def test_the_fingerprint_is_shown_before_anybody_logs_in(sshd: Sshd) -> None:
    assert host_fingerprint("127.0.0.1", sshd.port) == sshd.fingerprint


def test_another_host_key_ends_it(host: SshHost) -> None:
    with pytest.raises(PeerIdentityError, match="another host key"):
        look(replace(host, fingerprint="SHA256:" + "A" * 43), "true")


def test_a_refused_login_is_lasting_and_repeats_no_secret(host: SshHost) -> None:
    other = asyncssh.generate_private_key("ssh-ed25519").export_private_key().decode()
    with pytest.raises(PermanentTransportError, match="refused the login") as caught:
        look(replace(host, private_key=Secret(other)), "true")
    assert other not in str(caught.value)
    with pytest.raises(PermanentTransportError, match="refused the login"):
        look(replace(host, private_key=None, password=Secret("sesame-password")), "true")
    assert "sesame-password" not in repr(replace(host, password=Secret("sesame-password")))


def test_a_key_that_is_none_is_said_without_its_text(host: SshHost) -> None:
    with pytest.raises(PermanentTransportError, match="cannot be read") as caught:
        look(replace(host, private_key=Secret("-----BEGIN nonsense")), "true")
    assert "nonsense" not in str(caught.value)


def test_nobody_there_is_worth_another_try(host: SshHost, tmp_path: Path) -> None:
    with running_sshd(tmp_path) as gone:
        port = gone.port
    with pytest.raises(TransientTransportError, match="did not answer"):
        look(replace(host, port=port), "true")
    with pytest.raises(TransientTransportError, match="no SSH server"):
        host_fingerprint("127.0.0.1", port)


def test_a_command_that_hangs_is_given_up(host: SshHost) -> None:
    with pytest.raises(TransientTransportError, match="did not answer"):
        look(replace(host, command_s=0.5), "sleep", "60")


def test_a_command_that_fails_is_said_with_its_words(host: SshHost) -> None:
    with pytest.raises(PermanentTransportError, match=r"ls /nowhere.*No such file"):
        look(host, "ls", "/nowhere")


def test_a_directory_that_is_no_subvolume_is_refused(sshd: Sshd, tmp_path: Path) -> None:
    system = snapshot_directories.DRIVER.connect(
        StorageAccess(
            address=sshd.address,
            identity=sshd.fingerprint,
            secrets={"private_key": Secret(sshd.private_key)},
            options={"kind": "btrfs", "paths": [str(tmp_path)]},
        )
    )
    with pytest.raises(PermanentTransportError, match="subvolume show"):
        system.describe()
    with pytest.raises(PermanentTransportError, match="subvolume show"):
        system.create_snapshot(NAME, [str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("paths", [[], ["tank"], ["/tank/../etc"]])
def test_paths_that_make_no_sense_are_refused(paths: list[str]) -> None:
    access = StorageAccess(
        address="h",
        identity="i",
        secrets={"password": Secret("x")},
        options={"kind": "btrfs", "paths": paths},
    )
    with pytest.raises(ValueError, match="paths"):
        snapshot_directories.DRIVER.connect(access)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("h", ("h", 22)),
        ("h:2222", ("h", 2222)),
        ("[::1]:9", ("::1", 9)),
        ("[::1]", ("::1", 22)),
        ("::1", ("::1", 22)),
    ],
)
def test_addresses(text: str, parts: tuple[str, int]) -> None:
    assert split_address(text, 22) == parts
