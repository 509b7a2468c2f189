"""A Windows machine in memory, as far as the scripts ask for it."""

from __future__ import annotations

import hashlib
import ntpath
import re
from collections.abc import Callable
from typing import Any

from tests.support.winrm_endpoint import ThrownError

PYTHON = "C:\\Program Files\\Python312\\python.exe"


class PlayedWindows:
    def __init__(self, now_ms: Callable[[], int]) -> None:
        self.files: dict[str, bytes] = {}
        self.directories: set[str] = set()
        self.closed: dict[str, str] = {}
        """Directory: the task that gets in."""
        self.tasks: dict[str, dict[str, Any]] = {}
        self.calls: list[str] = []
        self.programs: list[list[str]] = []
        self.standard_inputs: list[str] = []
        self.fails: dict[str, str] = {}
        """Script: what it throws."""
        self.free_bytes = 1 << 40
        self.python: str = PYTHON
        self.on_enrol: Callable[[str], None] = lambda _: None
        self.on_start: Callable[[], None] = lambda: None
        self.now_ms = now_ms

    @property
    def state(self) -> dict[str, Any]:
        return {
            "files": dict(self.files),
            "directories": set(self.directories),
            "tasks": dict(self.tasks),
        }

    def run(self, name: str, given: dict[str, Any]) -> list[str]:
        self.calls.append(name)
        if name in self.fails:
            raise ThrownError(self.fails[name])
        said = getattr(self, f"_{name}")(
            **{re.sub("(?<=[a-z])(?=[A-Z])", "_", key).lower(): value for key, value in given.items()}
        )
        return list(said or [])

    def _look(self, install_dir: str, data_dir: str, python: str, task_name: str) -> list[str]:
        lines = [
            "system=Microsoft Windows Server 2022 Standard\x1b[31m",
            "build=20348",
            "architecture=AMD64",
            f"clock={self.now_ms()}",
            "administrator=yes",
            f"free={self.free_bytes}",
            f"free={self.free_bytes}",
        ]
        if self.python:
            base = ntpath.dirname(self.python)
            lines += [
                f"python={self.python}",
                f"python_base={base}",
                "python_version=3.12.4",
                "python_bits=64",
            ]
        if f"{data_dir}\\enrolment.json" in self.files:
            lines.append("taken=yes")
        if task_name in self.tasks:
            lines.append("service=taken")
        return lines

    def _exists(self, path: str) -> list[str]:
        return ["yes" if path in self.files or path in self.directories else "no"]

    def _directory(self, path: str) -> None:
        while len(path) > len("C:\\"):
            if path not in ("C:\\Program Files", "C:\\ProgramData"):
                self.directories.add(path)
            path = ntpath.dirname(path)

    def _closed_directory(self, path: str, task_name: str) -> None:
        self._directory(path)
        self.closed[path] = task_name

    def _part(self, path: str, offset: int, content: bytes) -> None:
        have = self.files.get(path, b"") if offset else b""
        if len(have) != offset:
            raise ThrownError("the next part belongs elsewhere")
        if len(content) > self.free_bytes:
            raise ThrownError("There is not enough space on the disk.")
        self.free_bytes -= len(content)
        self.files[path] = have + content

    def _keep_file(self, path: str, target: str, sha256: str) -> None:
        content = self.files.pop(path)
        if hashlib.sha256(content).hexdigest().upper() != sha256:
            raise ThrownError("arrived damaged")
        self.files[target] = content

    def _environment(self, python: str, directory: str) -> None:
        self.programs.append([python, "-m", "venv", directory])
        self._directory(f"{directory}\\Scripts")
        self.files[f"{directory}\\Scripts\\python.exe"] = b"MZ"

    def _packages(self, python: str, wheel: str, wheelhouse: str, timeout_seconds: int) -> None:
        self.programs.append([python, "-m", "pip", wheel, wheelhouse, str(timeout_seconds)])
        assert wheel.partition("[")[0] in self.files

    def _check(self, python: str) -> None:
        assert python in self.files

    def _enrol(self, python: str, data_dir: str, token: str) -> None:
        self.programs.append([python, "-m", "proxy_worker", "--data", data_dir, "--join", "token"])
        self.standard_inputs.append(token)
        self.on_enrol(token)
        self.files[f"{data_dir}\\enrolment.json"] = b"{}"
        self.closed[data_dir] = ""

    def _register(self, task_name: str, python: str, data_dir: str) -> None:
        assert self.closed[data_dir] == task_name, "the task would not get in"
        self.tasks[task_name] = {"program": python, "running": False}

    def _start(self, task_name: str) -> None:
        self.tasks[task_name]["running"] = True
        self.on_start()

    def _stop(self, task_name: str) -> None:
        if task_name in self.tasks:
            self.tasks[task_name]["running"] = False

    def _unregister(self, task_name: str) -> None:
        self.tasks.pop(task_name, None)

    def _current(self, task_name: str) -> list[str]:
        return [self.tasks[task_name]["program"]] if task_name in self.tasks else []

    def _last_words(self, path: str) -> list[str]:
        return self.files.get(path, b"").decode().splitlines()[-4:]

    def _remove(self, path: str) -> None:
        gone = (path, f"{path}\\")
        self.files = {
            name: one
            for name, one in self.files.items()
            if name != gone[0] and not name.startswith(gone[1])
        }
        self.directories = {
            one for one in self.directories if one != gone[0] and not one.startswith(gone[1])
        }
        self.closed.pop(path, None)

    def _forget_others(self, path: str, keep: list[str]) -> None:
        for one in [one for one in self.directories if ntpath.dirname(one) == path]:
            if ntpath.basename(one) not in keep:
                self._remove(one)
