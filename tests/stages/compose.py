"""`make compose-test`: docker-compose.yml from the first build to the last container, with the work of one day.

Exit status 0: all was shown; 1: something was not; 77: no Docker engine can be started here, so nothing was tried.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Any, Final

from tests.stages import bases
from tests.stages.engine import CHECKOUT, DockerError, Engine, running_engine
from tests.stages.platform import PROJECT, SERVICES, Platform
from tests.stages.report import Report, StageError, until

JOB: Final = "nightly"
SLOW: Final = "slow"
IDS: Final = {"session_id", "task_id", "attempt", "proxy"}
PROXY_LIMIT_S: Final = 180.0
SESSION_LIMIT_S: Final = 300.0


def perform(report: Report) -> None:
    with report.step("starting a Docker engine"):
        engine_block = running_engine()
        engine = engine_block.__enter__()
    try:
        _on(engine, report)
    except DockerError as error:
        raise StageError(str(error)) from error
    finally:
        with report.step("ending the engine, removing its data"):
            engine_block.__exit__(None, None, None)


def _on(engine: Engine, report: Report) -> None:
    with report.step("making stand-ins for public images"):
        images = bases.make_for_compose(engine)
    with report.step("building vmhaul and the simulated site"):
        for tag, target in (("vmhaul:stage", "vmhaul"), ("vmhaul-lab:stage", "lab")):
            engine.build(CHECKOUT, tag, "--target", target)
    images |= {"VMHAUL_IMAGE": "vmhaul:stage", "VMHAUL_LAB_IMAGE": "vmhaul-lab:stage"}
    platform = Platform(engine=engine, images=images)
    try:
        _day(platform, report)
    except (StageError, DockerError):
        print(platform.tell_why(), flush=True)
        raise
    finally:
        with report.step("taking everything down"):
            platform.compose("down", "--volumes", "--timeout", "20")
    left = engine.docker(
        "ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.project={PROJECT}"
    )
    if left.strip():
        raise StageError(f"containers are left: {left.split()}")


def _day(platform: Platform, report: Report) -> None:
    with report.step("bringing the stack up"):
        platform.compose("up", "--detach", "--no-build", "--quiet-pull")
    with report.step("waiting for two proxies that enrol by themselves"):
        until("two proxies are online", lambda: len(platform.online()) == 2, limit_s=PROXY_LIMIT_S)
    with report.step("adding the vCenter, a repository and a job"):
        _prepare(platform)
    before = {vm: platform.digests(vm) for vm in ("vm01", "vm02")}
    with report.step("backing up"):
        _run(platform, report)
    with report.step("restoring vm01 as a new VM, comparing its disks"):
        _restore(platform, report, "vm01", "vm01-back", before["vm01"])
    with report.step("scaling to four proxies"):
        _scale(platform, report)
    with report.step("killing a proxy while it works"):
        killed = _kill_one(platform, report)
    with report.step("restoring vm02 from that session, comparing its disks"):
        _restore(platform, report, "vm02", "vm02-back", before["vm02"])
    with report.step("removing the proxy that is gone"):
        _remove(platform, killed)
    with report.step("looking into Flower and Prometheus"):
        _watch(platform, report)
    with report.step("reading every log"):
        _read_logs(platform, report)


def _prepare(platform: Platform) -> None:
    site = platform.lab("status")
    platform.vmhaul(
        *("vcenter", "add", "lab", "lab:8443", "--user", site["user"], "--password-stdin"),
        *("--thumbprint", site["thumbprint_sha256"]),
        text_in=site["password"] + "\n",
    )
    platform.vmhaul(
        *("repository", "add", "main", "/repository/main", "--password-stdin"),
        text_in=platform.repository_password + "\n",
    )
    platform.vmhaul("job", "create", JOB, "--vcenter", "lab", "--repository", "main", "--vm", "vm0?")


def _run(platform: Platform, report: Report, *options: str) -> Counter[str]:
    """Run the job to its end; tasks by proxy."""
    platform.vmhaul("job", "run", JOB, *options)
    session = platform.last_session()
    if session["result"] != "success":
        raise StageError(f"the session ended with {session['result']}: {session['reason']}")
    tasks = platform.tasks_of(session)
    done = Counter(str(task["proxy"]) for task in tasks)
    report.say(f"  {len(tasks)} disks, by proxy: {dict(done)}")
    return done


def _restore(platform: Platform, report: Report, vm: str, name: str, wanted: list[str]) -> None:
    platform.vmhaul("restore", "vm", f"{vm}@latest", "--name", name)
    found = platform.digests(name)
    if found != wanted:
        raise StageError(f"{name} differs from {vm}: {found} instead of {wanted}")
    report.say(f"  {len(found)} disks equal, SHA-256 {found[0][:16]}...")


def _scale(platform: Platform, report: Report) -> None:
    old = set(platform.online())
    platform.compose("up", "--detach", "--no-build", "--no-recreate", "--scale", "proxy=4")
    until("four proxies are online", lambda: len(platform.online()) == 4, limit_s=PROXY_LIMIT_S)
    new = set(platform.online()) - old
    done = _run(platform, report, "--full")
    idle = [name for name in new if not done[name]]
    if len(new) != 2 or idle:
        raise StageError(f"new proxies {sorted(new)} took no task: {idle}")


def _kill_one(platform: Platform, report: Report) -> str:
    # Slowly, so that the disks are not done before the kill.
    platform.vmhaul("traffic", "add", SLOW, "--source", "any", "--target", "any", "--rate", "100KB/s")
    platform.vmhaul("job", "run", JOB, "--full", "--no-follow")
    running: list[str] = []

    def works() -> bool:
        tasks = platform.tasks_of(platform.last_session())
        running[:] = [task["proxy"] for task in tasks if task["state"] == "running"]
        return bool(running)

    until("a task runs", works, limit_s=SESSION_LIMIT_S, every_s=0.1)
    victim = running[0]
    container = next(one for one in platform.containers("proxy") if one.startswith(victim))
    platform.engine.docker("kill", container)
    report.say(f"  killed {victim} while it had {running.count(victim)} disks")
    platform.vmhaul("traffic", "remove", SLOW)

    def ended() -> bool:
        return bool(platform.last_session()["state"] == "finished")

    until("the session ends", ended, limit_s=SESSION_LIMIT_S)
    session = platform.last_session()
    tasks = platform.tasks_of(session)
    again = [task for task in tasks if task["attempt"] > 1]
    if session["result"] not in {"success", "warning"} or not again:
        raise StageError(
            f"the session ended with {session['result']} ({session['reason']}), {len(again)} disks were taken over"
        )
    if any(task["proxy"] == victim and task["attempt"] > 1 for task in tasks):
        raise StageError(f"a disk went back to {victim}, which is dead")
    report.say(f"  session: {session['result']}; {len(again)} disks were taken over by others")
    return victim


def _remove(platform: Platform, name: str) -> None:
    until("it counts as offline", lambda: platform.proxies()[name]["state"] == "offline", limit_s=60)
    platform.vmhaul("proxy", "remove", name, "--force")
    if name in platform.proxies():
        raise StageError(f"proxy {name} is still there")


def _watch(platform: Platform, report: Report) -> None:
    login = platform.secret("flower", "/secrets/login")
    if platform.get("FLOWER_PORT", "/workers")[0] != 401:
        raise StageError("Flower lets everybody in")
    seen: list[Any] = []

    def shown() -> bool:
        status, text = platform.get("FLOWER_PORT", "/workers", login)
        tasks = platform.get("FLOWER_PORT", "/api/tasks?limit=1000", login)[1]
        seen[:] = [status, text, tasks]
        return status == 200 and all(f"{name}@vmhaul" in text for name in platform.online())

    until("Flower shows all proxies by their names", shown, limit_s=60)
    page, titles = seen[1], platform.get("FLOWER_PORT", "/tasks", login)[0]
    if "vmhaul" not in page or titles != 200:
        raise StageError("Flower does not show its pages")
    up = until_value(platform, 'sum(up{job=~"vmhaul.*"})', 4.0)
    ended = platform.series('sum(vmhaul_tasks_ended_total{kind="backup-disk",result="success"})')
    rules = json.loads(platform.get("PROMETHEUS_PORT", "/api/v1/rules")[1])["data"]["groups"]
    alerts = [rule["name"] for group in rules for rule in group["rules"]]
    report.say(
        f"  Prometheus: {up:.0f} targets up, {ended[0]['value'][1]} disks counted, {len(alerts)} alert rules"
    )
    if float(ended[0]["value"][1]) < 24 or len(alerts) < 10:
        raise StageError("Prometheus misses figures or rules")


def until_value(platform: Platform, query: str, wanted: float) -> float:
    def is_so() -> bool:
        found = platform.series(query)
        return bool(found) and float(found[0]["value"][1]) == wanted

    until(f"{query} is {wanted:g}", is_so, limit_s=120, every_s=2)
    return wanted


def _read_logs(platform: Platform, report: Report) -> None:
    site = platform.lab("status")
    broker = platform.secret("server", "/secrets/vmhaul_broker").split("@")[0].rpartition(":")[2]
    database = platform.secret("server", "/secrets/vmhaul_database").split("@")[0].rpartition(":")[2]
    login = platform.secret("flower", "/secrets/login").partition(":")[2]
    hidden = (site["password"], platform.repository_password, broker, database, login)
    about = 0
    for service in (*SERVICES, "redis", "postgres", "prometheus"):
        text = platform.logs(service)
        if any(secret in text for secret in hidden):
            raise StageError(f"the log of {service} holds a secret")
        for line in text.splitlines():
            values = _parsed(line) if service in {"server", "proxy"} else {}
            if "task_id" in values:
                about += 1
                if not values.keys() >= IDS:
                    raise StageError(f"a line of {service} about a task lacks ids: {line}")
    report.say(f"  {about} lines about tasks, each with its ids; no secret in any log")
    if about < 100:
        raise StageError(f"only {about} lines of the logs are about tasks")


def _parsed(line: str) -> dict[str, Any]:
    try:
        # What comes before it is a terminal's affair.
        value = json.loads(line[line.index("{") :])
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


if __name__ == "__main__":
    sys.exit(Report("compose-test").run(perform))
