"""A machine in memory: files, directories, users and services, as far as installing a proxy asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from backup_server.deploy.machine import Ran

LOOK = {
    "system": "Debian GNU/Linux 12 (bookworm)",
    "family": "debian ",
    "release": "12",
    "kernel": "Linux",
    "architecture": "x86_64",
    "clock": "",
    "init": "systemd",
    "packages": "apt-get",
    "python": "/usr/bin/python3.11",
    "python_version": "3.11.2",
    "free": "10485760 /opt",
    "tool": "useradd\ntool=runuser\ntool=setpriv",
    "libnfs": "yes",
}


class FakeMachine:
    def __init__(self, **look: str | None) -> None:
        """`look`: what the look finds besides or instead; None: it does not say that."""
        self.name = "px1.example.com"
        self.look = {name: value for name, value in {**LOOK, **look}.items() if value is not None}
        self.files: dict[str, bytes] = {}
        self.directories = {"/opt", "/var/lib"}
        self.users = {"root"}
        self.links: dict[str, str] = {}
        self.running = False
        self.enabled = False
        self.calls: list[str] = []
        self.stdin: list[bytes] = []
        self.fails: dict[str, str] = {}
        """Part of a command line: what it says when it fails."""
        self.log = ""
        """Of its worker."""
        self.on_start: Callable[[], None] = lambda: None
        self.on_enrol: Callable[[str], None] = lambda _: None

    @contextmanager
    def connected(self, address: Any, login: Any) -> Iterator[FakeMachine]:
        del address, login
        yield self

    @property
    def state(self) -> dict[str, Any]:
        return {
            "files": set(self.files),
            "directories": set(self.directories),
            "users": set(self.users),
            "links": dict(self.links),
            "running": self.running,
            "enabled": self.enabled,
        }

    def has(self, path: str) -> bool:
        return path in self.files or path in self.directories or path in self.links

    def run(self, words: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 60) -> Ran:
        del timeout_s
        line = " ".join(words)
        self.calls.append(line)
        self.stdin.append(stdin)
        for part, why in self.fails.items():
            if part in line:
                return Ran(status=1, output="", errors=why)
        answer = self._do(list(words), stdin)
        if isinstance(answer, bool):
            return Ran(status=0 if answer else 1, output="", errors="")
        return Ran(status=0, output=answer, errors="")

    def _do(self, words: list[str], stdin: bytes) -> bool | str:
        match words:
            case ["sh", "-c", script, "sh", *arguments] if script.endswith('exec "$@"'):
                return self._do(arguments, stdin)
            case ["sh", "-c", script, "sh", *arguments]:
                return self._script(script, arguments, stdin)
            case ["env", _, *rest]:
                return self._do(rest, stdin)
            case ["id", "-u", user]:
                return user in self.users
            case ["useradd", *_, user]:
                self.users.add(user)
            case ["userdel", user]:
                self.users.discard(user)
            case ["test", _, path]:
                return self.has(path)
            case ["mkdir", "-p", *_, path]:
                self.directories.add(path)
            case ["rm", _, *paths]:
                for path in paths:
                    self._remove(path)
            case [_, "-m", "venv", path]:
                self.directories.add(path)
            case ["journalctl", *_] | ["tail", *_]:
                return self.log
            case ["readlink", path]:
                return self.links.get(path, "")
            case ["runuser", *_, "--join", "token"]:
                self.on_enrol(stdin.decode().strip())
                self.files[words[words.index("--data") + 1] + "/enrolment.json"] = b"{}"
            case ["systemctl", what, *_] | [_, "start" | "stop" as what]:
                self._service(what)
        return True

    def _script(self, script: str, arguments: list[str], stdin: bytes) -> bool | str:
        if "os-release" in script:
            return "".join(f"{name}={value}\n" for name, value in self.look.items())
        if "cat >" in script:
            self.files[arguments[0]] = stdin
        elif "ln -sfn" in script:
            self.links[arguments[1]] = arguments[0]
        elif "for one in *" in script:
            directory, *keep = arguments
            for path in [*self.directories, *self.files]:
                inside = path.removeprefix(directory + "/")
                if inside != path and inside.split("/")[0] not in keep:
                    self._remove(path)
        return True

    def _remove(self, path: str) -> None:
        inside = path + "/"
        self.directories = {
            one for one in self.directories if one != path and not one.startswith(inside)
        }
        for table in (self.files, self.links):
            for one in [one for one in table if one == path or one.startswith(inside)]:
                del table[one]

    def _service(self, what: str) -> None:
        if what == "start":
            was, self.running = self.running, True
            if not was:
                self.on_start()
        elif what == "stop":
            self.running = False
        elif what in {"enable", "disable"}:
            self.enabled = what == "enable"
