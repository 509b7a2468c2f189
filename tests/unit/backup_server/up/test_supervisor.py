"""The supervisor over children that are real processes, but not vmhaul's."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from backup_server.up.children import (
    BACKOFF_MAX_S,
    LOG_KEEP_BYTES,
    STEADY_AFTER_S,
    Child,
    ChildSpec,
)
from backup_server.up.options import UpError, UpOptions, write_private
from backup_server.up.supervisor import Supervisor, is_loopback

SLEEP = "import time; time.sleep(600)"


def _spec(name: str = "child", code: str = SLEEP, stop_s: float = 10) -> ChildSpec:
    return ChildSpec(name=name, argv=[sys.executable, "-c", code], stop_s=stop_s)


def _child(tmp_path: Path, spec: ChildSpec) -> Child:
    return Child(spec=spec, log_dir=tmp_path)


def _pid(child: Child) -> int:
    assert child.process is not None
    return child.process.pid


def test_a_child_writes_into_its_log_and_ends_on_sigterm(tmp_path: Path) -> None:
    child = _child(tmp_path, _spec(code="print('hello', flush=True)\n" + SLEEP))
    child.start(0.0)
    assert child.running
    while "hello" not in child.last_lines(5):
        assert child.running
    child.terminate()
    assert child.wait_or_kill(10)
    assert not child.running


def test_only_the_server_has_settings_in_its_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMHAUL_DATABASE", "postgresql://vmhaul:of-the-database@db/vmhaul")
    monkeypatch.setenv("PGPASSWORD", "of-the-database")
    monkeypatch.setenv("VMHAULERS", "kept")
    code = "import os; print(sorted(os.environ), flush=True)"
    told = []
    for has_settings in (False, True):
        spec = ChildSpec(
            name=f"child-{has_settings}",
            argv=[sys.executable, "-c", code],
            stop_s=10,
            has_settings=has_settings,
        )
        child = _child(tmp_path, spec)
        child.start(0.0)
        assert child.process is not None
        assert child.process.wait(60) == 0
        told.append(child.last_lines(1))
    other, server = told
    assert "PGPASSWORD" in server
    assert "VMHAUL_DATABASE" in server
    assert "PGPASSWORD" not in other
    assert "VMHAUL_DATABASE" not in other
    assert "'VMHAULERS'" in other
    assert "'PATH'" in other


def test_a_child_that_does_not_end_is_killed(tmp_path: Path) -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    child = _child(tmp_path, _spec(code=deaf))
    child.start(0.0)
    while "deaf" not in child.last_lines(5):
        assert child.running
    child.terminate()
    assert not child.wait_or_kill(0.2)
    assert not psutil.pid_exists(_pid(child))


def test_children_die_with_their_supervisor(tmp_path: Path) -> None:
    """PR_SET_PDEATHSIG: also when the supervisor is killed and cannot stop anything."""
    code = (
        "import sys, time, pathlib\n"
        "from backup_server.up.children import Child, ChildSpec\n"
        f"spec = ChildSpec(name='x', argv=[sys.executable, '-c', {SLEEP!r}], stop_s=1)\n"
        f"child = Child(spec=spec, log_dir=pathlib.Path({str(tmp_path)!r}))\n"
        "child.start(0.0)\n"
        "print(child.process.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = psutil.Popen([sys.executable, "-c", code], stdout=-1)
    try:
        grandchild = psutil.Process(int(parent.stdout.readline()))
        os.kill(parent.pid, signal.SIGKILL)
        grandchild.wait(10)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    assert not grandchild.is_running()


def test_back_off_grows_and_is_forgotten(tmp_path: Path) -> None:
    child = _child(tmp_path, _spec())
    waits = [child.plan_restart(1.0) for _ in range(7)]
    assert waits == [1, 2, 4, 8, 16, BACKOFF_MAX_S, BACKOFF_MAX_S]
    assert child.plan_restart(STEADY_AFTER_S + 1) == 1


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def supervisor(tmp_path: Path, said: list[str]) -> Supervisor:
    for name in ("run", "log", "proxies"):
        (tmp_path / name).mkdir()
    options = UpOptions(data_dir=tmp_path, flower=False)
    return Supervisor(options=options, broker=None, clock=Clock(), say=said.append)


def test_what_ended_is_started_again_after_its_back_off(
    supervisor: Supervisor, said: list[str]
) -> None:
    child = _child(supervisor.options.log_dir, _spec("server"))
    supervisor.children.append(child)
    child.start(supervisor.clock())
    try:
        os.kill(_pid(child), signal.SIGKILL)
        assert child.process is not None
        child.process.wait()
        supervisor.tick()
        assert "server ended (signal SIGKILL); it starts again in 1 s" in said[0]
        assert not child.running
        supervisor.clock.now += 1.5  # type: ignore[attr-defined]
        supervisor.tick()
        assert child.running
        assert child.restarts == 1
    finally:
        supervisor._stop_all()
    assert not child.running


def test_a_child_that_never_gets_ready_stops_the_start(supervisor: Supervisor) -> None:
    broken = ChildSpec(
        name="broker",
        argv=[sys.executable, "-c", "print('cannot bind'); raise SystemExit(1)"],
        stop_s=1,
        ready=lambda: False,
    )
    supervisor.broker = broken
    with pytest.raises(UpError, match=r"the broker did not start.*\n.*cannot bind"):
        supervisor.run()
    assert not (supervisor.options.run_dir / "up.json").exists()


def test_workers_follow_the_list_of_local_proxies(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Supervisor, "_worker_spec", lambda _, name: _spec(f"proxy-{name}"))
    file = supervisor.options.run_dir / "local-proxies.json"

    def names() -> list[str]:
        return [child.spec.name for child in supervisor.children if child.running]

    try:
        supervisor.tick()
        assert names() == []
        write_private(file, {"proxies": [{"name": "a"}, {"name": "b"}]})
        supervisor.tick()
        assert names() == ["proxy-a", "proxy-b"]
        write_private(file, {"proxies": [{"name": "b"}]})
        supervisor.tick()
        assert names() == ["proxy-b"]
    finally:
        supervisor._stop_all()
    assert names() == []


def test_logs_do_not_grow_for_ever(tmp_path: Path) -> None:
    chatty = (
        f"import sys, time\nsys.stdout.write('x' * {LOG_KEEP_BYTES + 1}); sys.stdout.flush()\n"
        "sys.stdin.read()\nprint('after', flush=True)\ntime.sleep(600)"
    )
    child = _child(tmp_path, _spec(code=chatty))
    child.start(0.0)
    try:
        while "after" not in child.last_lines(2):
            assert child.running
        child.cut_log()
        assert child.log_file.stat().st_size == 0
        assert child.log_file.with_suffix(".log.1").stat().st_size > LOG_KEEP_BYTES
        child.cut_log()
        assert child.log_file.with_suffix(".log.1").stat().st_size > LOG_KEEP_BYTES
    finally:
        child.terminate()
        child.wait_or_kill(10)
    # A start turns over as well.
    child.log_file.write_bytes(b"y" * (LOG_KEEP_BYTES + 1))
    child.start(0.0)
    child.terminate()
    child.wait_or_kill(10)
    assert child.log_file.with_suffix(".log.1").read_bytes()[:1] == b"y"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("backup.example", False),
    ],
)
def test_which_addresses_stay_on_the_machine(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
