"""A process that looks like one on Windows to what is imported after `become_windows()`.

What Windows has not is taken away (modules, functions of os, signals, sockets), and what it does otherwise is done its way
as far as a worker meets it: files that are open are neither deleted nor replaced, directories are not opened, pipes are not
asked. The calls of kernel32, advapi32 and msvcrt are played with those of this machine, from Microsoft's description of them:
`played` tells what they were asked. Only in a process of its own: there is no way back.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import importlib
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any, Final

ENTRIES: Final = ("__main__", "app", "enrol", "healthcheck", "mover_process")
OURS: Final = ("proxy_worker", "pipeline", "transports")
NO_MODULES: Final = ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "posix")
NOT_IN_OS: Final = (
    "pread", "pwrite", "preadv", "pwritev", "readv", "writev", "sendfile", "copy_file_range", "posix_fadvise",
    "posix_fallocate", "fork", "forkpty", "killpg", "waitid", "setsid", "getpgid", "getuid", "geteuid", "getgid",
    "getegid", "chown", "fchown", "lchown", "fchmod", "mkfifo", "mknod", "uname", "nice", "getloadavg", "sysconf",
    "statvfs", "fstatvfs", "sched_getaffinity", "sched_setaffinity", "major", "minor", "memfd_create", "P_PID",
    "WEXITED", "WNOWAIT", "O_CLOEXEC", "O_DIRECTORY", "O_DIRECT", "O_NOFOLLOW", "O_SYNC", "SEEK_DATA", "SEEK_HOLE",
)  # fmt: skip
ERROR_INVALID_HANDLE, ERROR_HANDLE_EOF = 6, 38
KILL_ON_JOB_CLOSE: Final = 0x2000
_pread, _close, _open, _unlink, _replace = os.pread, os.close, os.open, os.unlink, os.replace
_select, _clock = select.select, time.clock_gettime
_BOOT, _KILL = time.CLOCK_BOOTTIME, signal.SIGKILL
_flock = fcntl.flock


class Played:
    """What was asked of Windows."""

    def __init__(self) -> None:
        self.jobs: dict[int, set[int]] = {}
        self.limits: dict[int, int] = {}
        self.processes: dict[int, int] = {}
        self.secured: list[tuple[str, int, str]] = []
        self.descriptors: dict[int, str] = {}
        self.freed = 0
        self.fail: dict[str, int] = {}
        """Calls that are to fail, with the error's number."""
        self.refused = 0
        """Deletions and replacements of open files."""
        self.last_error = 0
        self.next_handle = 1000

    def handle(self) -> int:
        self.next_handle += 4
        return self.next_handle

    def failed(self, name: str) -> bool:
        if name in self.fail:
            self.last_error = self.fail[name]
            return True
        return False


played: Final = Played()


class _Call:
    """A function of a library: takes argtypes and restype as one of ctypes does, and holds who calls to them."""

    def __init__(self, name: str, function: Any) -> None:
        self.name, self.function = name, function
        self.argtypes: tuple[Any, ...] | None = None
        self.restype: Any = None

    def __call__(self, *given: Any) -> Any:
        assert self.argtypes is not None, f"{self.name} was not declared"
        assert len(given) == len(self.argtypes), f"{self.name} takes {len(self.argtypes)} arguments"
        for kind, value in zip(self.argtypes, given, strict=True):
            kind.from_param(value)
        return 0 if played.failed(self.name) else self.function(*given)


def _read_file(handle: int, buffer: Any, length: int, got: Any, place: Any) -> int:
    where = place._obj
    assert ctypes.sizeof(where) == 32
    try:
        data = _pread(handle, length, where.OffsetHigh << 32 | where.Offset)
    except OSError:
        played.last_error = ERROR_INVALID_HANDLE
        return 0
    if length and not data:
        played.last_error = ERROR_HANDLE_EOF
        return 0
    ctypes.memmove(buffer, data, len(data))
    got._obj.value = len(data)
    return 1


def _create_job(security: Any, name: Any) -> int:
    assert security is None
    assert name is None
    job = played.handle()
    played.jobs[job], played.limits[job] = set(), 0
    return job


def _set_job(job: int, kind: int, limits: Any, length: int) -> int:
    assert (kind, length, ctypes.sizeof(limits._obj)) == (9, 144, 144)
    played.limits[job] = limits._obj.BasicLimitInformation.LimitFlags
    return 1


def _open_process(rights: int, inherit: bool, process_id: int) -> int:
    assert rights & 0x0101 == 0x0101
    assert not inherit
    handle = played.handle()
    played.processes[handle] = process_id
    return handle


def _assign(job: int, process: int) -> int:
    played.jobs[job].add(played.processes[process])
    return 1


def _end_job(job: int, code: int) -> int:
    assert code
    for process_id in played.jobs[job]:
        try:
            os.kill(process_id, _KILL)
        except ProcessLookupError:
            continue
    return 1


def _close_handle(handle: int) -> int:
    if handle in played.jobs:
        if played.limits[handle] & KILL_ON_JOB_CLOSE:
            _end_job(handle, 1)
        del played.jobs[handle]
    else:
        del played.processes[handle]
    return 1


def _memory(status: Any) -> int:
    assert ctypes.sizeof(status._obj) == status._obj.dwLength == 64
    status._obj.ullTotalPhys = 8 << 30
    return 1


def _to_descriptor(text: str, revision: int, out: Any, size: Any) -> int:
    assert revision == 1
    assert size is None
    out._obj.value = played.handle()
    played.descriptors[out._obj.value] = text
    return 1


def _set_security(path: str, what: int, descriptor: Any) -> int:
    played.secured.append((path, what, played.descriptors[descriptor.value]))
    return 1


def _free(pointer: Any) -> int:
    del played.descriptors[pointer.value]
    played.freed += 1
    return 0


_LIBRARIES: Final = {
    "kernel32": {
        "ReadFile": _read_file,
        "CreateJobObjectW": _create_job,
        "SetInformationJobObject": _set_job,
        "AssignProcessToJobObject": _assign,
        "TerminateJobObject": _end_job,
        "OpenProcess": _open_process,
        "CloseHandle": _close_handle,
        "GetTickCount64": lambda: int(_clock(_BOOT) * 1000),
        "GlobalMemoryStatusEx": _memory,
        "LocalFree": _free,
    },
    "advapi32": {
        "ConvertStringSecurityDescriptorToSecurityDescriptorW": _to_descriptor,
        "SetFileSecurityW": _set_security,
    },
}


class _Library:
    def __init__(self, name: str, *, use_last_error: bool) -> None:
        assert use_last_error
        for call, function in _LIBRARIES[name].items():
            setattr(self, call, _Call(call, function))


def _locking(fd: int, mode: int, length: int) -> None:
    """The first byte stands for the whole file; a second lock of the same byte is refused, by whomever."""
    assert length == 1
    assert os.lseek(fd, 0, os.SEEK_CUR) == 0
    if mode == 0:
        _flock(fd, fcntl.LOCK_UN)
        return
    try:
        _flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise PermissionError(errno.EACCES, "Permission denied") from None


def _is_open(path: Any) -> bool:
    try:
        wanted = Path(path).stat()
    except OSError:
        return False
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found = entry.stat()
        except OSError:
            continue
        if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
            return True
    return False


def _refuse_open(path: Any) -> None:
    if _is_open(path):
        played.refused += 1
        raise PermissionError(errno.EACCES, "it is being used by another process", str(path))


def _win_open(path: Any, flags: int, mode: int = 0o777, *, dir_fd: Any = None) -> int:
    assert dir_fd is None, "Windows opens nothing relative to a directory"
    if Path(path).is_dir():
        raise PermissionError(errno.EACCES, "Permission denied", str(path))
    return _open(path, flags, mode)


def _win_unlink(path: Any, *, dir_fd: Any = None) -> None:
    assert dir_fd is None
    _refuse_open(path)
    _unlink(path)


def _win_replace(source: Any, target: Any) -> None:
    _refuse_open(source)
    _refuse_open(target)
    _replace(source, target)


def _win_select(readers: Any, writers: Any, others: Any, timeout: float | None = None) -> Any:
    for one in (*readers, *writers, *others):
        fd = one if isinstance(one, int) else one.fileno()
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise OSError(10038, "an operation was attempted on something that is not a socket")
    return _select(readers, writers, others, timeout)


class _NoFunction:
    def __get__(self, instance: Any, owner: Any) -> Any:
        raise AttributeError("Windows has no such method")


def become_windows() -> None:
    """From now on. What is imported afterwards of ours is imported as on Windows."""
    _import_others()
    msvcrt = ModuleType("msvcrt")
    vars(msvcrt).update(LK_UNLCK=0, LK_NBLCK=2, locking=_locking, get_osfhandle=lambda fd: fd)
    sys.modules["msvcrt"] = msvcrt
    for name in NO_MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    for name in NOT_IN_OS:
        if hasattr(os, name):
            delattr(os, name)
    vars(os).update(
        O_BINARY=0, O_NOINHERIT=0, open=_win_open, unlink=_win_unlink, remove=_win_unlink, replace=_win_replace
    )  # fmt: skip
    for name in ("SIGKILL", "SIGHUP", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGCHLD"):
        delattr(signal, name)
    for name in ("clock_gettime", "CLOCK_BOOTTIME"):
        delattr(time, name)
    for name in ("poll", "epoll"):
        delattr(select, name)
    vars(select)["select"] = _win_select
    del socket.AF_UNIX
    socket.socket.sendmsg = _NoFunction()  # type: ignore[assignment]
    vars(subprocess)["CREATE_NO_WINDOW"] = 0
    subprocess.Popen.kill = lambda process: os.kill(process.pid, _KILL)  # type: ignore[method-assign]
    vars(ctypes).update(
        WinDLL=_Library,
        CDLL=None,
        get_last_error=lambda: played.last_error,
        WinError=lambda code: OSError(code, f"Windows error {code}"),
    )
    sys.platform = "win32"


def _import_others() -> None:
    """What ours need of others, as it is on this machine: the standard library asks for the system as well."""
    for name in ENTRIES:
        importlib.import_module(f"proxy_worker.{name}")
    for name in (
        "pipeline.testing.builders",
        "pipeline.testing.storage",
        "pipeline.storage.object_store",
    ):
        importlib.import_module(name)
    importlib.import_module("pipeline.repository.index_build")
    for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
        del sys.modules[name]


def import_entries() -> list[str]:
    """The modules with which a worker on Windows starts; all of ours that came with them."""
    for name in ENTRIES:
        importlib.import_module(f"proxy_worker.{name}")
    return sorted(name for name in sys.modules if name.partition(".")[0] in OURS)


def directory(argument: int = 1) -> Path:
    """The one that the test gave."""
    return Path(sys.argv[argument])
