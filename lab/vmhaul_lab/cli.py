"""`vmhaul-lab`: a simulated vSphere site for trying vmhaul, and the demo."""

import argparse
import json
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vmhaul_lab import day, plan, verify
from vmhaul_lab.control import ControlClient, LabDisk
from vmhaul_lab.errors import LabError
from vmhaul_lab.loops import release_under
from vmhaul_lab.site import LabSite, digest
from vmhaul_lab.state import SiteState

DEFAULT_DIR = Path(".lab")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status (1: it failed, 2: wrong use)."""
    options = _parser().parse_args(arguments)
    handler: Callable[[argparse.Namespace], int] = options.handler
    try:
        return handler(options)
    except LabError as error:
        print(f"vmhaul-lab: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vmhaul-lab", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, handler: Callable[[argparse.Namespace], int], text: str, *, site: bool = True
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(handler=handler)
        sub.add_argument("--json", action="store_true", help="print JSON")
        if site:
            sub.add_argument("--dir", type=Path, default=DEFAULT_DIR, help="the site's directory")
        return sub

    up = command("up", _up, "build a site and run it in the foreground (Ctrl-C ends it)")
    up.add_argument("--size", choices=("quick", "small", "normal", "large"), default="normal")
    up.add_argument("--huge", action="store_true", help="add a VM with a nearly empty 2 TiB disk")
    up.add_argument("--seed", type=int, default=1, help="decides the content of the disks")
    up.add_argument("--listen", default="127.0.0.1:0", help="address of vCenter and hosts")
    command("down", _down, "end a site that was left running and free its loop devices")
    command("status", _status, "addresses, user and VMs of a running site")
    command("disks", _disks, "the VMs' disks, their files and snapshots")
    work = command("day", _day, "let the guests do a day of work on their file systems")
    work.add_argument("--seed", default="day", help="decides what they do")
    work.add_argument("--share", type=float, default=0.03, help="part of the data that changes")
    work.add_argument("--trim", action="store_true", help="guests give freed space back (fstrim)")
    work.add_argument("--vm", help="only this VM")
    fault = command("fault", _fault, "make the site fail on purpose")
    fault.add_argument("kind", help="kind of fault, see lab/labvc/README.md")
    fault.add_argument("values", nargs="*", metavar="KEY=VALUE", help="count=N and what the kind takes")
    command("clear-faults", _clear_faults, "disarm all faults")
    power = command("power-loss", _power_loss, "take the power from a VM")
    power.add_argument("vm")
    command("drop-sessions", _drop_sessions, "end all sessions of the vCenter")
    command("stats", _stats, "what was asked of the site")
    hashing = command("hash", _hash, "digest of raw disk files", site=False)
    hashing.add_argument("files", nargs="+", type=Path, metavar="FILE")
    check = command("fsck", _fsck, "check all file systems inside raw disk files", site=False)
    check.add_argument("files", nargs="+", type=Path, metavar="FILE")
    demo = command(
        "demo", _demo, "back up, change, back up, restore and compare with vmhaul", site=False
    )
    demo.add_argument("--dir", type=Path, default=Path(".demo"), help="work directory (%(default)s)")
    demo.add_argument("--size", choices=("small", "normal", "large"), default="normal")
    demo.add_argument("--keep", action="store_true", help="leave everything running at the end")
    matrix = command("matrix", _matrix, "every transport mode at every kind of disk", site=False)
    matrix.add_argument(
        "--dir", type=Path, default=Path(".matrix"), help="work directory (%(default)s)"
    )
    matrix.add_argument(
        "--mode", action="append", default=[], help="only this mode; repeat for more (default: all)"
    )
    matrix.add_argument("--disk-mib", type=int, default=64, help="size of each disk (%(default)s)")
    stop = command("demo-stop", _demo_stop, "end a demo that was kept and remove its files", site=False)
    stop.add_argument(
        "--dir", type=Path, default=Path(".demo"), help="its work directory (%(default)s)"
    )
    return parser


def _show(options: argparse.Namespace, value: Any, text: str) -> int:
    print(json.dumps(value, indent=1, default=str) if options.json else text)
    return 0


def _client(options: argparse.Namespace) -> ControlClient:
    return ControlClient(SiteState.read(options.dir.resolve()).control)


def _up(options: argparse.Namespace) -> int:
    directory = options.dir.resolve()
    if directory.exists() and any(directory.iterdir()):
        raise LabError(f"{directory} is not empty: remove it, or name another with --dir")
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    if not options.json:
        print(f"building a {options.size} site in {directory} ...", flush=True)
    site_plan = plan.sized(options.size, huge=options.huge)
    with LabSite(directory, site_plan, seed=options.seed, listen=options.listen) as site:
        print(_addresses(options, SiteState.read(directory)), flush=True)
        while not ended.wait(0.5):
            site.check()
    shutil.rmtree(directory)
    return 0


def _addresses(options: argparse.Namespace, state: SiteState) -> str:
    if options.json:
        return json.dumps(asdict(state))
    lines = [f"NFS server  {state.nfs_host}"] if state.nfs_host else []
    for name, settings in state.proxies.items():
        lines.append(f"proxy VM    {name}: a vmhaul proxy takes itself for it with this proxy.toml")
        lines += [f'            {key} = "{value}"' for key, value in settings.items()]
    return "\n".join([_basics(state), *lines])


def _basics(state: SiteState) -> str:
    return (
        f"vCenter     https://{state.vcenter}\n"
        f"user        {state.user}\n"
        f"password    {state.password}\n"
        f"thumbprint  {state.thumbprint_sha256}\n"
        f"control     http://{state.control}\n"
        f"directory   {state.directory}"
    )


def _down(options: argparse.Namespace) -> int:
    directory = options.dir.resolve()
    state = SiteState.read(directory, ended_too=True)
    state.process.end()
    if state.hardware is not None:
        state.hardware.end()
    released = release_under(directory)
    return _show(
        options,
        {"released": released},
        f"ended; {len(released)} loop devices freed; files stay in {directory}",
    )


def _status(options: argparse.Namespace) -> int:
    state = SiteState.read(options.dir.resolve())
    vms = ControlClient(state.control).vms()
    names = ", ".join(vm.name for vm in vms)
    return _show(
        options,
        {**asdict(state), "vms": [asdict(vm) for vm in vms]},
        f"{_addresses(options, state)}\nVMs         {names}",
    )


def _disk_line(disk: LabDisk) -> str:
    kind = "thin" if disk.thin else "thick"
    snapshots = f"  {len(disk.snapshots)} snapshots" if disk.snapshots else ""
    return (
        f"{disk.vm:<16} {disk.key:<6} {disk.label:<14} {disk.capacity_bytes / 2**20:>10,.0f} MiB {kind:<6}"
        f"{disk.live_file}{snapshots}"
    )


def _disks(options: argparse.Namespace) -> int:
    disks = _client(options).disks()
    return _show(options, [asdict(disk) for disk in disks], "\n".join(map(_disk_line, disks)))


def _day(options: argparse.Namespace) -> int:
    reports: dict[str, Any] = {}
    for disk in _client(options).disks(options.vm):
        seed = f"{options.seed}/{disk.vm}/{disk.label}"
        done = day.work_on_disk(disk.live_file, seed, share=options.share, trim=options.trim)
        reports[f"{disk.vm}/{disk.label}"] = asdict(done)
    lines = (
        f"{name}: "
        + ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in done.items() if count)
        for name, done in reports.items()
    )
    return _show(options, reports, "\n".join(lines))


def parse_values(words: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE words; a value that reads as JSON (a number, true, a list) is taken as such."""
    values: dict[str, Any] = {}
    for word in words:
        key, separator, text = word.partition("=")
        if not separator or not key:
            raise LabError(f"{word!r} is not KEY=VALUE")
        try:
            values[key] = json.loads(text)
        except ValueError:
            values[key] = text
    return values


def _fault(options: argparse.Namespace) -> int:
    answer = _client(options).fault(options.kind, **{"count": 1, **parse_values(options.values)})
    return _show(options, {"id": answer}, f"armed: {options.kind}")


def _clear_faults(options: argparse.Namespace) -> int:
    _client(options).clear_faults()
    return _show(options, {}, "no faults are armed")


def _power_loss(options: argparse.Namespace) -> int:
    _client(options).power_loss(options.vm)
    return _show(options, {}, f"{options.vm} lost its power")


def _drop_sessions(options: argparse.Namespace) -> int:
    _client(options).drop_sessions()
    return _show(options, {}, "all sessions ended")


def _stats(options: argparse.Namespace) -> int:
    stats = _client(options).stats()
    return _show(options, stats, json.dumps(stats, indent=1))


def _files(options: argparse.Namespace) -> list[Path]:
    for path in options.files:
        if not path.is_file():
            raise LabError(f"{path} is not a file")
    return list(options.files)


def _hash(options: argparse.Namespace) -> int:
    digests = {str(path): digest(path) for path in _files(options)}
    return _show(options, digests, "\n".join(f"{value}  {name}" for name, value in digests.items()))


def _fsck(options: argparse.Namespace) -> int:
    results = {str(path): verify.fsck(path) for path in _files(options)}
    lines = [
        f"{name}: {result.volume} ({result.kind}) {'clean' if result.clean else 'DAMAGED: ' + result.text}"
        for name, found in results.items()
        for result in found
    ]
    _show(
        options, {name: [asdict(r) for r in found] for name, found in results.items()}, "\n".join(lines)
    )
    return 0 if all(result.clean for found in results.values() for result in found) else 1


def _demo(options: argparse.Namespace) -> int:
    from vmhaul_lab.demo import run_demo

    return run_demo(options.dir.resolve(), size=options.size, keep=options.keep)


def _matrix(options: argparse.Namespace) -> int:
    from vmhaul_lab.matrix import run_matrix

    return run_matrix(
        options.dir.resolve(), only=options.mode, disk_mib=options.disk_mib, as_json=options.json
    )


def _demo_stop(options: argparse.Namespace) -> int:
    from vmhaul_lab.demo import stop_demo

    stop_demo(options.dir.resolve())
    return _show(options, {}, f"ended; {options.dir} is removed")


if __name__ == "__main__":
    sys.exit(main())
