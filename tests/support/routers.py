"""A network behind routers, made of network name spaces."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

_TIED = ("setpriv", "--pdeathsig", "KILL")


@contextmanager
def behind_routers(routers: int) -> Iterator[str]:
    """Address of a machine with so many routers between it and this one. Gone when left, and when this process
    dies: the name spaces live as long as the processes that hold them.
    """
    net = f"198.18.{random.randrange(256)}"
    start = random.randrange(0, 192, 64)
    with ExitStack() as stack:
        spaces = [stack.enter_context(_name_space()) for _ in range(routers + 1)]
        for number, pid in enumerate(spaces):
            near, far = f"{net}.{start + number * 4 + 1}", f"{net}.{start + number * 4 + 2}"
            left = spaces[number - 1] if number else None
            _cable(left, f"vr{pid}", near, pid, far)
            _inside(pid, "ip", "route", "add", "default", "via", near)
            if number:
                # Whoever stands before the last cable finds this network behind the next router.
                for before in range(number):
                    via = f"{net}.{start + before * 4 + 2}"
                    _inside(
                        spaces[before - 1] if before else None,
                        *("ip", "route", "add", f"{net}.{start + number * 4}/30", "via", via),
                    )
        yield far


@contextmanager
def _name_space() -> Iterator[int]:
    script = "ip link set lo up && echo 1 > /proc/sys/net/ipv4/ip_forward && echo up && exec cat"
    holder = subprocess.Popen(
        [*_TIED, "unshare", "--net", "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"up\n"
        yield holder.pid
    finally:
        holder.kill()
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()


def _cable(left: int | None, name: str, near: str, right: int, far: str) -> None:
    _inside(left, "ip", "link", "add", name, "type", "veth", "peer", "name", "up0", "netns", str(right))
    _inside(left, "ip", "addr", "add", f"{near}/30", "dev", name)
    _inside(left, "ip", "link", "set", name, "up")
    _inside(right, "ip", "addr", "add", f"{far}/30", "dev", "up0")
    _inside(right, "ip", "link", "set", "up0", "up")


def _inside(pid: int | None, *command: str) -> None:
    """In the name space of a process; None: in ours."""
    enter = () if pid is None else ("nsenter", "--net", "--target", str(pid))
    subprocess.run([*enter, *command], check=True)
