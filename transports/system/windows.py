"""The calls of Windows, from the standard library: msvcrt, and kernel32 and advapi32 by ctypes.

Written from Microsoft's documentation of the calls. What is run of it in the tests is played by stand-ins of those
calls (docs/explanation/windows-proxies.md says what that proves and what it does not).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import msvcrt
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Final, TypeVar

assert sys.platform == "win32"

NAME: Final = "Windows"
OPEN_FLAGS: Final = os.O_BINARY | os.O_NOINHERIT
"""Belong to every os.open(): without O_BINARY the C library changes the ends of lines."""
ENVIRONMENT: Final = (
    "PATH", "PATHEXT", "PYTHONPATH", "SYSTEMROOT", "SYSTEMDRIVE", "WINDIR", "COMSPEC", "TEMP", "TMP", "USERPROFILE",
    "APPDATA", "LOCALAPPDATA", "PROGRAMDATA", "NUMBER_OF_PROCESSORS", "PROCESSOR_ARCHITECTURE", "TZ",
)  # fmt: skip
"""Variables without which a Python process does not run as its parent does: sockets and random numbers want
SYSTEMROOT."""

_ERROR_HANDLE_EOF: Final = 38
_SHARING_TRIES: Final = 100
_SHARING_PAUSE_S: Final = 0.05
_LIMIT_INFORMATION: Final = 9  # JobObjectExtendedLimitInformation
_KILL_ON_JOB_CLOSE: Final = 0x2000
_PROCESS_RIGHTS: Final = (
    0x0100 | 0x0001
)  # PROCESS_SET_QUOTA and PROCESS_TERMINATE, which a job asks for
_KILLED: Final = 1
"""Exit code of what was killed."""
_DACL_PROTECTED: Final = 0x00000004 | 0x80000000  # DACL_ and PROTECTED_DACL_SECURITY_INFORMATION
_SDDL_REVISION: Final = 1
_PRIVATE: Final = "D:P(A;OICI;FA;;;OW)(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)"
"""Everything for the owner, the system and the administrators, for nobody else; what is made inside inherits it."""

T = TypeVar("T")
# By their lengths on Windows, so that the structures have their true layout wherever they are looked at.
_DWORD: Final = ctypes.c_uint32
_BOOL: Final = ctypes.c_int32
_TEXT: Final = ctypes.c_wchar_p
_P: Final = ctypes.c_void_p


class _Overlapped(ctypes.Structure):
    _fields_ = (
        ("Internal", ctypes.c_size_t),
        ("InternalHigh", ctypes.c_size_t),
        ("Offset", _DWORD),
        ("OffsetHigh", _DWORD),
        ("hEvent", _P),
    )


class _BasicLimits(ctypes.Structure):
    _fields_ = (
        ("PerProcessUserTimeLimit", ctypes.c_int64),
        ("PerJobUserTimeLimit", ctypes.c_int64),
        ("LimitFlags", _DWORD),
        ("MinimumWorkingSetSize", ctypes.c_size_t),
        ("MaximumWorkingSetSize", ctypes.c_size_t),
        ("ActiveProcessLimit", _DWORD),
        ("Affinity", ctypes.c_size_t),
        ("PriorityClass", _DWORD),
        ("SchedulingClass", _DWORD),
    )


class _ExtendedLimits(ctypes.Structure):
    _fields_ = (
        ("BasicLimitInformation", _BasicLimits),
        ("IoInfo", ctypes.c_uint64 * 6),
        ("ProcessMemoryLimit", ctypes.c_size_t),
        ("JobMemoryLimit", ctypes.c_size_t),
        ("PeakProcessMemoryUsed", ctypes.c_size_t),
        ("PeakJobMemoryUsed", ctypes.c_size_t),
    )


class _MemoryStatus(ctypes.Structure):
    _fields_ = (
        ("dwLength", _DWORD),
        ("dwMemoryLoad", _DWORD),
        *(
            (name, ctypes.c_uint64)
            for name in (
                "ullTotalPhys", "ullAvailPhys", "ullTotalPageFile", "ullAvailPageFile",
                "ullTotalVirtual", "ullAvailVirtual", "ullAvailExtendedVirtual",
            )
        ),
    )  # fmt: skip


_kernel32: Final = ctypes.WinDLL("kernel32", use_last_error=True)
_advapi32: Final = ctypes.WinDLL("advapi32", use_last_error=True)
_ReadFile: Final = _kernel32.ReadFile
_ReadFile.argtypes = (_P, _P, _DWORD, _P, _P)
_ReadFile.restype = _BOOL
_CreateJobObjectW: Final = _kernel32.CreateJobObjectW
_CreateJobObjectW.argtypes = (_P, _TEXT)
_CreateJobObjectW.restype = _P
_SetInformationJobObject: Final = _kernel32.SetInformationJobObject
_SetInformationJobObject.argtypes = (_P, ctypes.c_int, _P, _DWORD)
_SetInformationJobObject.restype = _BOOL
_AssignProcessToJobObject: Final = _kernel32.AssignProcessToJobObject
_AssignProcessToJobObject.argtypes = (_P, _P)
_AssignProcessToJobObject.restype = _BOOL
_TerminateJobObject: Final = _kernel32.TerminateJobObject
_TerminateJobObject.argtypes = (_P, ctypes.c_uint)
_TerminateJobObject.restype = _BOOL
_OpenProcess: Final = _kernel32.OpenProcess
_OpenProcess.argtypes = (_DWORD, _BOOL, _DWORD)
_OpenProcess.restype = _P
_CloseHandle: Final = _kernel32.CloseHandle
_CloseHandle.argtypes = (_P,)
_CloseHandle.restype = _BOOL
_GetTickCount64: Final = _kernel32.GetTickCount64
_GetTickCount64.argtypes = ()
_GetTickCount64.restype = ctypes.c_uint64
_GlobalMemoryStatusEx: Final = _kernel32.GlobalMemoryStatusEx
_GlobalMemoryStatusEx.argtypes = (_P,)
_GlobalMemoryStatusEx.restype = _BOOL
_LocalFree: Final = _kernel32.LocalFree
_LocalFree.argtypes = (_P,)
_LocalFree.restype = _P
_ToDescriptor: Final = _advapi32.ConvertStringSecurityDescriptorToSecurityDescriptorW
_ToDescriptor.argtypes = (_TEXT, _DWORD, _P, _P)
_ToDescriptor.restype = _BOOL
_SetFileSecurityW: Final = _advapi32.SetFileSecurityW
_SetFileSecurityW.argtypes = (_TEXT, _DWORD, _P)
_SetFileSecurityW.restype = _BOOL


def pread(fd: int, length: int, offset: int) -> bytes:
    """Up to `length` bytes at an offset; fewer at the end of the file. Safe for threads: the offset goes with the
    call, and nothing here uses the file's own position. OSError.
    """
    buffer = ctypes.create_string_buffer(length)
    got = _DWORD(0)
    place = _Overlapped(Offset=offset & 0xFFFFFFFF, OffsetHigh=offset >> 32)
    handle = msvcrt.get_osfhandle(fd)
    if not _ReadFile(handle, buffer, length, ctypes.byref(got), ctypes.byref(place)):
        code = ctypes.get_last_error()
        if code == _ERROR_HANDLE_EOF:
            return b""
        raise ctypes.WinError(code)
    return buffer.raw[: got.value]


def lock_file(fd: int) -> bool:
    """Whether this open file is now the one that holds the lock; never waits. It must be given back by
    `unlock_file`: closing does it too, but Windows takes its time. OSError.
    """
    os.lseek(fd, 0, os.SEEK_SET)
    try:
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EDEADLK):
            return False
        raise
    return True


def unlock_file(fd: int) -> None:
    """Give back what `lock_file` took; nothing when it took nothing."""
    os.lseek(fd, 0, os.SEEK_SET)
    with contextlib.suppress(OSError):
        msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)


def read_file(path: Path) -> bytes:
    """The whole of a file that others replace meanwhile: the old content or the new. OSError."""
    return _shared(path.read_bytes)


def replace_file(source: Path, target: Path) -> None:
    """Give a file the name of another. One that somebody reads cannot be replaced here: tried again for five seconds,
    then PermissionError. OSError.
    """
    _shared(lambda: source.replace(target))


def _shared(act: Callable[[], T]) -> T:
    pause = threading.Event()
    for _ in range(_SHARING_TRIES - 1):
        try:
            return act()
        except PermissionError:
            pause.wait(_SHARING_PAUSE_S)
    return act()


def sync_directory(path: Path) -> None:
    """Nothing: NTFS logs names by itself, and gives no means to wait for it. After a loss of power the last
    name may be the one before.
    """
    del path


def make_private_directory(path: Path) -> None:
    """With its parents. It is closed to everybody but its owner, the system and the administrators, also when it was
    there: files have no modes, what is made inside inherits from it. OSError.
    """
    path.mkdir(parents=True, exist_ok=True)
    descriptor = ctypes.c_void_p()
    if not _ToDescriptor(_PRIVATE, _SDDL_REVISION, ctypes.byref(descriptor), None):
        raise ctypes.WinError(ctypes.get_last_error())
    try:
        if not _SetFileSecurityW(str(path), _DACL_PROTECTED, descriptor):
            raise ctypes.WinError(ctypes.get_last_error())
    finally:
        _LocalFree(descriptor)


def others_may_read(path: Path) -> str:
    """Empty: modes say nothing here. The directory around it was closed by `make_private_directory`."""
    del path
    return ""


def usable_cpus() -> int:
    """Processors of this machine."""
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """Of this machine. OSError."""
    status = _MemoryStatus(dwLength=ctypes.sizeof(_MemoryStatus))
    if not _GlobalMemoryStatusEx(ctypes.byref(status)):
        raise ctypes.WinError(ctypes.get_last_error())
    return int(status.ullTotalPhys)


def uptime_s() -> float:
    """Seconds since the machine started, those included in which it slept; the same in every process. In steps
    of up to 16 ms.
    """
    return float(_GetTickCount64()) / 1000


def die_with_parent() -> None:
    """Nothing: the parent has put us into a job that ends with it (`Child`)."""


class Child:
    """A child process in a job of its own, with pipes to its standard streams.

    The job's only handle is ours: when this process ends, however it does, Windows closes the handle, and with it ends
    everything in the job. A parent that ends between starting a child and giving it to the job is noticed by what
    everybody here watches besides: standard input that ends.
    """

    CAN_ASK_PIPES: Final = False
    """Whether a pipe takes a line without waiting is not to be known."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """OSError when it cannot be started or be given to its job."""
        self._job = _job()
        try:
            self.process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=dict(environment),
                creationflags=subprocess.CREATE_NO_WINDOW,
            )
            try:
                _give(self._job, self.process.pid)
            except BaseException:
                self._abandon()
                raise
        except BaseException:
            _CloseHandle(self._job)
            raise

    def ask_to_end(self, tell: Callable[[], None]) -> None:
        """By `tell`: there is no signal that the child could answer."""
        tell()

    def kill(self) -> None:
        """Everything in the job, at once."""
        _TerminateJobObject(self._job, _KILLED)

    def await_end(self) -> None:
        self.process.wait()

    def takes_now(self, pipe: IO[bytes]) -> bool:
        """Not to be known; False."""
        del pipe
        return False

    def release(self) -> None:
        """The job goes, and whatever was left in it."""
        _CloseHandle(self._job)

    def _abandon(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


def _job() -> int:
    job: int | None = _CreateJobObjectW(None, None)
    if not job:
        raise ctypes.WinError(ctypes.get_last_error())
    limits = _ExtendedLimits()
    limits.BasicLimitInformation.LimitFlags = _KILL_ON_JOB_CLOSE
    if not _SetInformationJobObject(
        job, _LIMIT_INFORMATION, ctypes.byref(limits), ctypes.sizeof(limits)
    ):
        code = ctypes.get_last_error()
        _CloseHandle(job)
        raise ctypes.WinError(code)
    return job


def _give(job: int, process_id: int) -> None:
    process: int | None = _OpenProcess(_PROCESS_RIGHTS, False, process_id)
    if not process:
        raise ctypes.WinError(ctypes.get_last_error())
    try:
        if not _AssignProcessToJobObject(job, process):
            raise ctypes.WinError(ctypes.get_last_error())
    finally:
        _CloseHandle(process)
