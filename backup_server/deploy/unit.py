"""How a machine starts a proxy: a systemd unit, or a script of its init with a supervisor of vmhaul's own."""

from __future__ import annotations

from typing import Final

from backup_server.deploy.places import Places

CAPABILITIES: Final = ("DAC_OVERRIDE", "NET_BIND_SERVICE")
"""Of a user who is nobody otherwise: files of the kernel that only root may open (the SMBIOS UUID, the bus scan of
HotAdd), and source ports below 1024, from which NFS servers expect root's requests.
"""
STOP_S: Final = 60
"""Longer than a worker takes to stop its movers and say so."""

_UNIT: Final = """\
# Written by vmhaul; replaced when the proxy is upgraded.
[Unit]
Description=vmhaul backup proxy ({data_dir})
Wants=network-online.target
After=network-online.target time-sync.target
StartLimitIntervalSec=0

[Service]
ExecStart={python} -m proxy_worker --data {data_dir}
User={user}
Group={user}
# Block devices, which direct SAN and HotAdd read and restores write.
SupplementaryGroups=disk
AmbientCapabilities={ambient}
CapabilityBoundingSet={ambient}
Restart=always
RestartSec=2
# The worker tells its data movers to stop; what does not is killed at the end.
KillMode=mixed
TimeoutStopSec={stop_s}
OOMPolicy=continue
UMask=0077
NoNewPrivileges=yes
PrivateTmp=yes
ProtectSystem=full
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
LockPersonality=yes
SystemCallArchitectures=native
# Not set, and why: PrivateDevices, ProtectClock and DevicePolicy would hide disks; ProtectKernelTunables makes /sys
# read-only, and HotAdd rescans buses there; ProtectHome and ProtectSystem=strict would hide backup repositories,
# which may lie anywhere; MemoryDenyWriteExecute stops libraries that are called through libffi.

[Install]
WantedBy=multi-user.target
"""

_SCRIPT: Final = """\
#!/bin/sh
### BEGIN INIT INFO
# Provides:          {service}
# Required-Start:    $network $remote_fs $time
# Required-Stop:     $network $remote_fs
# Default-Start:     2 3 4 5
# Default-Stop:      0 1 6
# Short-Description: vmhaul backup proxy
### END INIT INFO
# chkconfig: 2345 90 10
# description: vmhaul backup proxy
# Written by vmhaul; replaced when the proxy is upgraded.

supervise() {{
  {python} -m proxy_worker.supervise --pid-file {pid_file} "$@"
}}

case "$1" in
  start) supervise --log-file {log_file} start -- {command} ;;
  stop) supervise stop ;;
  restart|force-reload) supervise stop && "$0" start ;;
  status) supervise status ;;
  *) echo "usage: $0 start|stop|restart|status" >&2; exit 2 ;;
esac
"""

_OPENRC: Final = """\
#!/sbin/openrc-run
# Written by vmhaul; replaced when the proxy is upgraded.
description="vmhaul backup proxy"

depend() {{
  need net
  after clock
}}

start() {{
  ebegin "Starting {service}"
  {python} -m proxy_worker.supervise --pid-file {pid_file} --log-file {log_file} start -- {command}
  eend $?
}}

stop() {{
  ebegin "Stopping {service}"
  {python} -m proxy_worker.supervise --pid-file {pid_file} stop
  eend $?
}}

status() {{
  {python} -m proxy_worker.supervise --pid-file {pid_file} status
}}
"""


def systemd_unit(places: Places) -> str:
    ambient = " ".join(f"CAP_{name}" for name in CAPABILITIES)
    return _UNIT.format(
        python=places.python,
        data_dir=places.data_dir,
        user=places.user,
        ambient=ambient,
        stop_s=STOP_S,
    )


def init_script(places: Places, *, openrc: bool = False) -> str:
    return (_OPENRC if openrc else _SCRIPT).format(
        service=places.service,
        python=places.python,
        pid_file=places.pid_file,
        log_file=places.log_file,
        command=" ".join(worker_command(places)),
    )


def worker_command(places: Places) -> list[str]:
    """The worker as its user with the capabilities of the unit, for init systems that cannot say so."""
    capabilities = ",".join(f"+{name.lower()}" for name in CAPABILITIES)
    return [
        "setpriv",
        f"--reuid={places.user}",
        f"--regid={places.user}",
        "--init-groups",
        f"--inh-caps={capabilities}",
        f"--ambient-caps={capabilities}",
        "--no-new-privs",
        places.python,
        "-m",
        "proxy_worker",
        "--data",
        places.data_dir,
    ]
