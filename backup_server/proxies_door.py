"""The door for proxies on other machines: HTTPS with the server's own certificate, on a thread of its own.

It serves enrolment, the proxies' calls and the certificate authority, nothing else. The certificate is looked
at once an hour and shown anew, without a restart, when it was renewed.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Final

import redis
import uvicorn

from backup_server import server_certificates
from backup_server.api.app import create_door
from backup_server.api.deps import Doorstep
from backup_server.config import Settings
from backup_server.doorkeeper import Doorkeeper, DoorLimits, GuardedListener, Watched
from backup_server.doors import Door
from backup_server.errors import VmhaulError
from backup_server.server_certificates import DoorCertificate
from backup_server.services.about import connect_broker
from backup_server.services.context import Context

RENEWAL_LOOK_S: Final = 3600.0
GRACE_S: Final = 5
SWEEP_S: Final = 1
_JOIN_S: Final = 10.0


def certificate_of(settings: Settings, door: Door, ctx: Context) -> DoorCertificate:
    """The certificate for the names by which proxies reach that door, made or renewed when it has to be."""
    names = server_certificates.names_of(door.host, settings.proxies_names)
    return server_certificates.ensure(settings.tls_dir, names, ctx.clock())


class ProxiesDoor:
    """`start()` once, `stop()` once."""

    def __init__(
        self,
        ctx: Context,
        step: Doorstep,
        door: Door,
        listener: socket.socket,
        *,
        clock: Callable[[], float],
        limits: DoorLimits | None = None,
    ) -> None:
        """`listener`: bound to that door, taken over. `clock`: monotonic seconds."""
        self._ctx = ctx
        self._door = door
        self.keeper = Doorkeeper(clock, limits)
        self._listener = GuardedListener(self.keeper, listener)
        files = certificate_of(ctx.settings, door, ctx)
        app = create_door(step, lambda: server_certificates.ca_pem(ctx.settings.tls_dir, ctx.clock()))
        config = uvicorn.Config(
            Watched(app, self.keeper),
            log_config=None,
            access_log=False,
            server_header=False,
            # Whoever comes through a proxy of HTTP is not believed what it says of the way.
            proxy_headers=False,
            lifespan="off",
            # The keeper counts connections where Python accepts them.
            loop="asyncio",
            callback_notify=self.keeper.sweep,
            timeout_notify=SWEEP_S,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=GRACE_S,
            ssl_certfile=str(files.certificate_file),
            ssl_keyfile=str(files.key_file),
        )
        config.load()
        if config.ssl is None:
            raise VmhaulError("the door for proxies has no TLS: its certificate was not loaded")
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
        self._ssl = config.ssl
        self._server = uvicorn.Server(config)
        self._stop = threading.Event()
        self._threads = (
            threading.Thread(target=self._serve, name="vmhaul-proxies-door", daemon=True),
            threading.Thread(target=self._renew, name="vmhaul-door-certificate", daemon=True),
        )

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._server.should_exit = True
        for thread in self._threads:
            thread.join(_JOIN_S)

    def _serve(self) -> None:
        self._server.run(sockets=[self._listener])
        if not self._stop.is_set():
            self._ctx.log.error("door.ended", text="the door for proxies ended; restart the server")

    def _renew(self) -> None:
        while not self._stop.wait(RENEWAL_LOOK_S):
            try:
                self.renew()
            except (OSError, ValueError, VmhaulError) as error:
                self._ctx.log.warning(
                    "door.certificate", text="the certificate was not renewed", error=str(error)
                )

    def renew(self) -> bool:
        """Show a new certificate when the old one has to go; true when it was so."""
        files = certificate_of(self._ctx.settings, self._door, self._ctx)
        if not files.renewed:
            return False
        self._ssl.load_cert_chain(files.certificate_file, files.key_file)
        if not self._ctx.settings.broker:
            # The broker reads its files again when it is told their names; at its next start it does anyhow.
            with contextlib.suppress(redis.RedisError, OSError), connect_broker(self._ctx) as client:
                client.config_set("tls-cert-file", str(files.certificate_file))
        self._ctx.log.info("door.certificate", text="the certificate of the proxies' door was renewed")
        return True
