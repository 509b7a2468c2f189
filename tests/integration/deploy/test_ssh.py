"""Commands over a real SSH connection to a server that answers as a test wants."""

from __future__ import annotations

import asyncio
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import asyncssh
import pytest

from backup_server.deploy import said
from backup_server.deploy.machine import StepError
from backup_server.deploy.ssh import Login, SshAddress, connected, host_key_of
from backup_server.errors import InvalidError, UnavailableError
from transports.vsphere.model import Secret

Answer = Callable[[Any], None]


class Sshd:
    """Lets everybody in who has the password; `answers` says what each command does, by a part of it."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._connections: list[Any] = []
        self.answers: dict[str, Answer] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        key = asyncssh.generate_private_key("ssh-ed25519")
        self.host_key = key.get_fingerprint("sha256")
        self._server = self._do(self._listen(key))
        self.port = int(self._server.sockets[0].getsockname()[1])

    def _do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    async def _listen(self, key: Any) -> Any:
        connections = self._connections

        class Anybody(asyncssh.SSHServer):
            def connection_made(self, conn: Any) -> None:
                connections.append(conn)

            def password_auth_supported(self) -> bool:
                return True

            def validate_password(self, username: str, password: str) -> bool:
                return password == "of-ops"

        return await asyncssh.listen(
            "127.0.0.1", 0, server_factory=Anybody, server_host_keys=[key],
            process_factory=self._answer, encoding=None,
        )  # fmt: skip

    async def _answer(self, process: Any) -> None:
        command = str(process.command)
        self.asked.append(command)
        for part, answer in self.answers.items():
            if part in command:
                try:
                    answer(process)
                    await process.stdout.drain()
                except (asyncssh.Error, OSError):
                    pass
                return
        process.stderr.write(b"no such command\n")
        process.exit(127)

    def cut(self) -> int:
        """End the connections that there are, without a word; how many there were."""

        async def end() -> None:
            for one in self._connections:
                one.abort()
                await one.wait_closed()

        self._do(end())
        count = len(self._connections)
        self._connections.clear()
        return count

    def close(self) -> None:
        async def end() -> None:
            self._server.close()
            await self._server.wait_closed()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for one in others:
                one.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self._do(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()


@pytest.fixture
def sshd() -> Iterator[Sshd]:
    server = Sshd()
    yield server
    server.close()


def says(output: bytes, status: int = 0, errors: bytes = b"") -> Answer:
    def answer(process: Any) -> None:
        process.stdout.write(output)
        process.stderr.write(errors)
        process.exit(status)

    return answer


def reach(sshd: Sshd, *, sudo_password: str | None = None) -> Any:
    address = SshAddress(host="127.0.0.1", port=sshd.port, host_key=sshd.host_key)
    login = Login(
        user="ops",
        password=Secret("of-ops"),
        sudo_password=None if sudo_password is None else Secret(sudo_password),
    )
    return connected(address, login)


AS_ROOT = "env LC_ALL=C PYTHONSAFEPATH=1 id -u"


def test_what_is_said_is_cleaned(sshd: Sshd) -> None:
    sshd.answers = {"evil": says(b"\x1b[2Jfine", 3, b"\x1b]0;title\x07bad\r\n"), AS_ROOT: says(b"0\n")}
    with reach(sshd) as machine:
        ran = machine.run(["evil"])
    assert (ran.status, ran.output, ran.errors, ran.why()) == (3, "fine", "bad\n", "bad")


def test_whoever_never_stops_talking_is_ended(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backup_server.deploy.ssh.MOST_BYTES", 4 << 20)

    def endless(process: Any) -> None:
        for _ in range(100):
            process.stdout.write(b"x" * 100_000)

    sshd.answers = {"endless": endless, "good": says(b"yes"), AS_ROOT: says(b"0\n")}
    with reach(sshd) as machine:
        with pytest.raises(StepError, match="said more than 4 MiB"):
            machine.run(["endless"])
        # The connection is as good as before.
        assert machine.run(["good"]).output == "yes"


def test_of_much_the_end_is_kept(sshd: Sshd) -> None:
    sshd.answers = {
        "much": says(b"first\n" + b"line\n" * 500_000 + b"last\n", 1),
        AS_ROOT: says(b"0\n"),
    }
    with reach(sshd) as machine:
        ran = machine.run(["much"])
    assert len(ran.output) <= said.KEPT_BYTES
    assert ran.why().endswith("line / last")


@pytest.fixture
def rude() -> Iterator[int]:
    """Port of a server that only says goodbye, in words that play with a terminal."""
    words = b"\x1b]0;owned\x07\x1b[2Jgo\x08 away\n" + b"x" * 20_000
    payload = b"\x01" + (2).to_bytes(4, "big") + len(words).to_bytes(4, "big") + words + bytes(4)
    padding = 16 - (len(payload) + 5) % 8
    packet = (
        (len(payload) + padding + 1).to_bytes(4, "big") + bytes([padding]) + payload + bytes(padding)
    )

    class Goodbye(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(b"SSH-2.0-rude\r\n" + packet)
            while self.request.recv(4096):
                pass

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Goodbye) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield int(server.server_address[1])
        server.shutdown()
        thread.join(60)


def test_what_a_server_says_before_any_login_is_cleaned_too(rude: int) -> None:
    with pytest.raises(UnavailableError) as looking:
        host_key_of("127.0.0.1", rude)
    address = SshAddress(host="127.0.0.1", port=rude, host_key="SHA256:x")
    with (
        pytest.raises(UnavailableError) as connecting,
        connected(address, Login(user="ops", password=Secret("of-ops"))),
    ):
        raise AssertionError("it was let in")
    for refused in (looking, connecting):
        text = refused.value.message
        assert "go away" in text
        assert text.isprintable()
        assert len(text) < 500


def test_sudo_is_tried_with_what_is_run(sshd: Sshd) -> None:
    """It lets this login run `id` and `true` as root, and not `env`, which stands before every command."""
    refused = says(b"", 1, b"\x1b[1msudo: user ops is not allowed to execute '/usr/bin/env'\x1b[0m\n")
    sshd.answers = {
        "sudo -n -- env": refused,
        "sudo -k -S -p '' -- env": refused,
        "sudo": says(b"0\n"),
        "id -u": says(b"1000\n"),
    }
    wanted = r"not allowed to execute '/usr/bin/env'; .* all commands"
    with pytest.raises(InvalidError, match=wanted), reach(sshd):
        raise AssertionError("it became root")
    sshd.answers = {f"sudo -n -- {AS_ROOT}": says(b"0\n"), "id -u": says(b"1000\n")}
    sshd.answers[f"sudo -n -- {AS_ROOT.replace('id -u', 'whoami')}"] = says(b"root\n")
    with reach(sshd) as machine:
        assert machine.run(["whoami"]).output == "root\n"


def test_a_connection_that_was_cut_while_nothing_ran_is_opened_again(sshd: Sshd) -> None:
    """As by a firewall, while an upgrade waits for hours until a proxy is drained."""
    refused = says(b"", 1, b"sudo: a password is required\n")
    sshd.answers = {"sudo -n": refused, "sudo -k": says(b"0\n"), "id -u": says(b"1000\n")}
    with reach(sshd) as machine:
        assert machine.run(["first"]).ok
        assert sshd.cut() == 1
        until = time.monotonic() + 60
        # Found out without being asked anything.
        while not machine._connection.is_closed():
            assert time.monotonic() < until
            time.sleep(0.01)
        assert machine.run(["second"]).ok
        assert sshd.cut() == 1
    assert [one for one in sshd.asked if one.endswith(("first", "second"))] == [
        f"sudo -k -S -p '' -- {AS_ROOT.replace('id -u', word)}" for word in ("first", "second")
    ]
    assert not [one for one in threading.enumerate() if one.name == "vmhaul-ssh"]
