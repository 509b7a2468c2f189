"""A virtual machine (QEMU, no hardware virtualisation needed) whose guest runs one Python program of ours.

The guest is a stock Debian kernel with VMware's paravirtual SCSI driver, this machine's own Python, and just the
modules that the program imports. Disks are added to and taken from the running machine, so the program sees
what a kernel really does then.
"""

import json
import os
import py_compile
import re
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vmhaul_lab.commands import run
from vmhaul_lab.errors import LabError
from vmhaul_lab.guest_init import MODULES_FILE, PREFIX

# In the order in which they need each other.
DRIVERS = ("scsi_common", "scsi_mod", "sd_mod", "vmw_pvscsi")
_LIBRARY = f"usr/lib/python{sys.version_info[0]}.{sys.version_info[1]}"
# What a module that is imported has loaded tells best what it needs.
_LIST_MODULES = """
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
found = {}
for name, module in sorted(sys.modules.items()):
    file = getattr(module, "__file__", None)
    if file:
        found[name] = [file, hasattr(module, "__path__")]
print(json.dumps(found))
"""
_INIT = b"#!/usr/bin/python3 -S\nimport vmhaul_lab.guest_init\nvmhaul_lab.guest_init.main()\n"


def kernel_directory() -> Path:
    """Where `tools/setup.sh test` put the kernel; `VMHAUL_GUEST_KERNEL` names another place."""
    named = os.environ.get("VMHAUL_GUEST_KERNEL")
    directory = Path(named) if named else Path(sys.prefix) / "guest-kernel"
    if not (directory / "vmlinuz").exists():
        raise LabError(f"{directory} holds no guest kernel: run `tools/setup.sh test`")
    return directory


class InitialFiles:
    """A cpio archive in the form that a kernel unpacks into its first file system."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._made: set[str] = {"", "."}
        self._number = 0

    def add(self, path: str, content: bytes, *, mode: int = 0o644) -> None:
        """A file, with the directories above it; not a second time."""
        if path in self._made:
            return
        self._directories(path)
        self._entry(path, content, stat.S_IFREG | mode)

    def add_character_device(self, path: str, number: tuple[int, int]) -> None:
        """A node that must be there before anything is mounted."""
        self._directories(path)
        self._entry(path, b"", stat.S_IFCHR | 0o600, device=number)

    def archive(self) -> bytes:
        """The whole archive."""
        self._entry("TRAILER!!!", b"", 0)
        return b"".join(self._parts)

    def _directories(self, path: str) -> None:
        for parent in reversed(Path(path).parents):
            if str(parent) not in self._made:
                self._entry(str(parent), b"", stat.S_IFDIR | 0o755)

    def _entry(self, path: str, content: bytes, mode: int, device: tuple[int, int] = (0, 0)) -> None:
        self._made.add(path)
        self._number += 1
        name = path.encode() + b"\0"
        numbers = (self._number, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(name), 0)
        header = b"070701" + b"".join(b"%08x" % number for number in numbers)
        for part in (header + name, content):
            self._parts.append(part + bytes(-len(part) % 4))


def initial_files(program: str, kernel: Path) -> bytes:
    """The first file system of a guest that runs `main()` of the module `program`."""
    files = InitialFiles()
    # To the first the first process speaks; Python reads the second when it starts.
    files.add_character_device("dev/console", (5, 1))
    files.add_character_device("dev/urandom", (1, 9))
    files.add("init", _INIT, mode=0o755)
    drivers = [f"/drivers/{name}.ko" for name in DRIVERS]
    for driver in drivers:
        files.add(driver[1:], (kernel / Path(driver).name).read_bytes())
    files.add(MODULES_FILE[1:], json.dumps({"drivers": drivers, "program": program}).encode())
    python = Path(sys.executable).resolve()
    files.add("usr/bin/python3", python.read_bytes(), mode=0o755)
    binaries = [python]
    words = (sys.executable, "-c", _LIST_MODULES, program, "vmhaul_lab.guest_init", "encodings.ascii")
    listed: dict[str, tuple[str, bool]] = json.loads(run(*words).stdout)
    with tempfile.TemporaryDirectory() as scratch:
        for name, (file, is_package) in listed.items():
            if file.endswith(".so"):
                files.add(f"{_LIBRARY}/lib-dynload/{Path(file).name}", Path(file).read_bytes())
                binaries.append(Path(file))
            else:
                target = name.replace(".", "/") + ("/__init__.pyc" if is_package else ".pyc")
                files.add(f"{_LIBRARY}/{target}", _compiled(file, Path(scratch) / "compiled"))
    files.add(f"{_LIBRARY}/lib-dynload/.keep", b"")
    for path in _libraries(binaries):
        files.add(path[1:], Path(path).read_bytes(), mode=0o755)
    return files.archive()


def _compiled(source: str, scratch: Path) -> bytes:
    """Compiled here: the guest's processor is a slow one."""
    py_compile.compile(
        source,
        cfile=str(scratch),
        dfile=source,
        doraise=True,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    return scratch.read_bytes()


def _libraries(binaries: Sequence[Path]) -> list[str]:
    said = run("ldd", *binaries).stdout
    return sorted(set(re.findall(r"(/\S+\.so\S*) \(0x", said)))


class RealGuest:
    """A running guest; a context manager that ends it by its process id."""

    def __init__(self, directory: Path, program: str, *, uuid: str, memory_mb: int = 256) -> None:
        """`directory`: for its files. `program`: a module that is importable here, with a `main()`."""
        kernel = kernel_directory()
        initrd = directory / "initial.cpio"
        initrd.write_bytes(initial_files(program, kernel))
        self._directory = directory
        self._qmp_path = directory / "qmp"
        self._command = [
            *(
                "qemu-system-x86_64",
                "-accel",
                "tcg",
                "-m",
                str(memory_mb),
                "-nodefaults",
                "-no-user-config",
            ),
            *("-display", "none", "-no-reboot", "-uuid", uuid),
            *("-smbios", "type=1,manufacturer=VMware,uuid=" + uuid),
            *("-kernel", str(kernel / "vmlinuz"), "-initrd", str(initrd)),
            *(
                "-append",
                "console=ttyS0 loglevel=3 panic=-1 mitigations=off random.trust_cpu=on rdinit=/init",
            ),
            *("-device", "pvscsi,id=scsi0", "-serial", "stdio"),
            *("-qmp", f"unix:{self._qmp_path},server=on,wait=off"),
        ]

    def __enter__(self) -> Self:
        with (self._directory / "qemu.log").open("wb") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
            )
        self._said: list[str] = []
        self._qmp: Any = None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._qmp):
            if file is not None:
                file.close()

    def heard(self) -> tuple[str, Any]:
        """The next thing that the program says; `LabError` when it failed or the machine ended."""
        assert self._process.stdout is not None
        for raw in self._process.stdout:
            line = raw.decode(errors="replace").rstrip()
            self._said.append(line)
            _, found, text = line.partition(PREFIX)
            if found:
                word, value = json.loads(text)
                if word == "failed":
                    raise LabError(f"the program in the guest failed: {value}")
                return word, value
        raise LabError("the guest has ended; its console ends with:\n" + "\n".join(self._said[-30:]))

    def answer(self, value: object) -> None:
        """Answer what the program asked."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(value).encode() + b"\n")
        self._process.stdin.flush()

    def attach(self, name: str, file: Path, *, unit: int, read_only: bool, wwn: str = "") -> None:
        """Add a raw file as a disk of the SCSI controller while the machine runs."""
        self._order(
            "blockdev-add",
            **{"driver": "raw", "node-name": name, "read-only": read_only},
            file={"driver": "file", "filename": str(file), "read-only": read_only},
        )
        identity = {"wwn": int(wwn, 16)} if wwn else {}
        self._order(
            "device_add",
            driver="scsi-hd",
            id=f"disk-{name}",
            drive=name,
            bus="scsi0.0",
            **{"scsi-id": unit},
            **identity,
        )

    def detach(self, name: str) -> None:
        """Take a disk away and close its file."""
        self._order("device_del", id=f"disk-{name}")
        while f"disk-{name}" in json.dumps(self._order("query-block")):
            pass
        self._order("blockdev-del", **{"node-name": name})

    def _order(self, command: str, **arguments: Any) -> Any:
        if self._qmp is None:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(self._qmp_path))
                self._qmp = connection.makefile("rwb")
            self._qmp.readline()
            self._order("qmp_capabilities")
        self._qmp.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        self._qmp.flush()
        while True:
            answer = json.loads(self._qmp.readline())
            if "error" in answer:
                raise LabError(f"QEMU refuses {command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]
