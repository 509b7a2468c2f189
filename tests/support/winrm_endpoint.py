"""A WinRM endpoint on loopback: HTTPS, NTLM, WS-Management's shell messages, PSRP by psrpcore's server side.

It runs no PowerShell: each script is looked up by its text, and played by a method of a machine in memory. A text that
is not exactly one of the product's scripts, or with parameters that it does not declare, fails the pipeline.
"""

from __future__ import annotations

import base64
import re
import ssl
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import psrpcore
import spnego
from psrpcore.types import ErrorCategoryInfo, ErrorRecord, NETException, PSInvocationState

from backup_server.deploy.windows.winrm import script_text
from tests.support.certificates import Certificate

NS = {
    "s": "http://www.w3.org/2003/05/soap-envelope",
    "a": "http://schemas.xmlsoap.org/ws/2004/08/addressing",
    "w": "http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd",
    "rsp": "http://schemas.microsoft.com/wbem/wsman/1/windows/shell",
    "t": "http://schemas.xmlsoap.org/ws/2004/09/transfer",
    "f": "http://schemas.microsoft.com/wbem/wsman/1/wsmanfault",
}
_SPACES = " ".join(f'xmlns:{short}="{uri}"' for short, uri in NS.items())
_DECLARED = re.compile(r"^\s*\[(?:[\w.]+(?:\[\])?)\]\s*\$(\w+)", re.MULTILINE)

Script = Callable[[str, dict[str, Any]], list[str]]
"""Name and parameters of a script; what it says. ThrownError where it throws."""


class ThrownError(Exception):
    """What a script throws."""


class Endpoint:
    def __init__(self, run: Script, scripts: Path) -> None:
        self.run = run
        self.names = {script_text(path.stem): path.stem for path in scripts.glob("*.ps1")}
        self.texts: list[str] = []
        """Every script as it arrived."""
        self.bodies: list[bytes] = []
        """Every request body, as it would be recorded on the machine's side."""
        self.defects: list[BaseException] = []
        self.logons = 0
        self.cut_at: str = ""
        """Name of a script: the connection ends when it arrives, once."""
        self.pools: dict[str, psrpcore.ServerRunspacePool] = {}
        self.waiting: dict[str, list[bytes]] = {}
        self.ended: set[str] = set()
        self.lock = threading.Lock()

    # ---- WS-Management

    def answer(self, body: bytes) -> bytes | None:
        """None: the connection is cut."""
        with self.lock:
            self.bodies.append(body)
            envelope = ET.fromstring(body)
            action = _text(envelope, "s:Header/a:Action").rpartition("/")[2]
            content = getattr(self, f"_{action.lower()}")(envelope)
        if content is None:
            return None
        message_id = _text(envelope, "s:Header/a:MessageID")
        return (
            f"<s:Envelope {_SPACES}><s:Header><a:RelatesTo>{message_id}</a:RelatesTo></s:Header>"
            f"<s:Body>{content}</s:Body></s:Envelope>"
        ).encode()

    def _create(self, envelope: ET.Element) -> str:
        shell = envelope.find("s:Body/rsp:Shell", NS)
        assert shell is not None
        shell_id = shell.attrib["ShellId"]
        opening = shell.find("{http://schemas.microsoft.com/powershell}creationXml")
        if opening is None:
            opening = shell.find("creationXml")
        assert opening is not None
        self.pools[shell_id] = psrpcore.ServerRunspacePool()
        self.waiting[shell_id] = []
        self._feed(shell_id, opening.text or "")
        return (
            "<t:ResourceCreated><a:ReferenceParameters><w:SelectorSet>"
            f'<w:Selector Name="ShellId">{shell_id}</w:Selector>'
            "</w:SelectorSet></a:ReferenceParameters></t:ResourceCreated>"
            f"<rsp:Shell><rsp:ShellId>{shell_id}</rsp:ShellId></rsp:Shell>"
        )

    def _command(self, envelope: ET.Element) -> str | None:
        line = envelope.find("s:Body/rsp:CommandLine", NS)
        assert line is not None
        command_id = line.attrib["CommandId"]
        pool = self.pools[self._shell(envelope)]
        psrpcore.ServerPipeline(pool, uuid.UUID(command_id))
        self.waiting[command_id] = []
        if not self._feed(self._shell(envelope), _text(line, "rsp:Arguments")):
            return None
        return f"<rsp:CommandResponse><rsp:CommandId>{command_id}</rsp:CommandId></rsp:CommandResponse>"

    def _send(self, envelope: ET.Element) -> str | None:
        if not self._feed(self._shell(envelope), _text(envelope, "s:Body/rsp:Send/rsp:Stream")):
            return None
        return "<rsp:SendResponse/>"

    def _receive(self, envelope: ET.Element) -> str:
        wanted = envelope.find("s:Body/rsp:Receive/rsp:DesiredStream", NS)
        assert wanted is not None
        command_id = wanted.attrib.get("CommandId")
        target = command_id or self._shell(envelope)
        attribute = f' CommandId="{command_id}"' if command_id else ""
        streams = "".join(
            f'<rsp:Stream Name="stdout"{attribute}>{base64.b64encode(piece).decode()}</rsp:Stream>'
            for piece in self.waiting[target]
        )
        self.waiting[target] = []
        state = ""
        if command_id in self.ended:
            state = (
                f'<rsp:CommandState CommandId="{command_id}" State="{NS["rsp"]}/CommandState/Done"/>'
            )
        return f"<rsp:ReceiveResponse>{streams}{state}</rsp:ReceiveResponse>"

    def _signal(self, envelope: ET.Element) -> str:
        del envelope
        return "<rsp:SignalResponse/>"

    def _delete(self, envelope: ET.Element) -> str:
        self.pools.pop(self._shell(envelope))
        return ""

    def _shell(self, envelope: ET.Element) -> str:
        return _text(envelope, "s:Header/w:SelectorSet/w:Selector")

    # ---- PSRP

    def _feed(self, shell_id: str, text: str) -> bool:
        """False: the connection is to be cut."""
        pool = self.pools[shell_id]
        data = base64.b64decode(text)
        pool.receive_data(psrpcore.PSRPPayload(data, psrpcore.StreamType.default, None))
        while (event := pool.next_event()) is not None:
            if isinstance(event, psrpcore.CreatePipelineEvent):
                assert event.pipeline_id is not None
                pipeline = pool.pipeline_table[event.pipeline_id]
                if not self._play(pipeline, event.pipeline):
                    return False
        while (payload := pool.data_to_send()) is not None:
            target = str(payload.pipeline_id).upper() if payload.pipeline_id else shell_id
            self.waiting[target].append(payload.data)
        return True

    def _play(self, pipeline: Any, shell: psrpcore.PowerShell) -> bool:
        [command] = shell.commands
        self.texts.append(command.command_text)
        parameters = {str(name): value for name, value in command.parameters}
        pipeline.start()
        try:
            name = self.names.get(command.command_text)
            if name is None or not command.is_script:
                raise ThrownError("this is none of the scripts")
            if name == self.cut_at:
                self.cut_at = ""
                return False
            declared = set(_DECLARED.findall(command.command_text.partition("\n)")[0]))
            if name == "common":
                declared = set()
            elif not declared:
                declared = set(
                    re.findall(r"^param\(\[\w+\] \$(\w+)\)", command.command_text, re.MULTILINE)
                )
            if set(parameters) != declared:
                raise ThrownError(f"{name} takes {sorted(declared)} and was given {sorted(parameters)}")
            for line in [] if name == "common" else self.run(name, parameters):
                pipeline.write_output(line)
            pipeline.complete()
        except ThrownError as failure:
            record = ErrorRecord(
                Exception=NETException(Message=str(failure), HResult=-1),
                CategoryInfo=ErrorCategoryInfo(),
                FullyQualifiedErrorId="RuntimeException",
            )
            pipeline._change_state(PSInvocationState.Failed, error=record)
        self.ended.add(str(pipeline.pipeline_id).upper())
        return True


def _text(where: ET.Element, path: str) -> str:
    found = where.find(path, NS)
    assert found is not None, path
    return found.text or ""


@contextmanager
def serving(endpoint: Endpoint, certificate: Certificate) -> Iterator[int]:
    """Its port. Logons are looked up in the file that NTLM_USER_FILE names."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30

        def setup(self) -> None:
            super().setup()
            self.logon: Any = None

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if not self.known():
                return
            content = endpoint.answer(body)
            if content is None:
                self.close_connection = True
                self.connection.close()
                return
            self.say(200, content)

        def known(self) -> bool:
            """As WinRM does: a logon holds for its connection."""
            kind, _, token = self.headers.get("Authorization", "").partition(" ")
            if self.logon is not None and self.logon.complete and not token:
                return True
            if kind != "Negotiate":
                self.say(401, b"", "Negotiate")
                return False
            if self.logon is None or self.logon.complete:
                self.logon = spnego.server(protocol="negotiate")
            try:
                answer = self.logon.step(base64.b64decode(token))
            except spnego.exceptions.SpnegoError:
                self.logon = None
                self.say(401, b"", "Negotiate")
                return False
            if self.logon.complete:
                endpoint.logons += 1
                return True
            self.say(401, b"", f"Negotiate {base64.b64encode(answer or b'').decode()}")
            return False

        def say(self, status: int, content: bytes, challenge: str = "") -> None:
            self.send_response(status)
            if challenge:
                self.send_header("WWW-Authenticate", challenge)
            self.send_header("Content-Type", "application/soap+xml;charset=UTF-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            """The tests' output stays readable."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def get_request(self) -> Any:
            plain, address = super().get_request()
            return context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False), address

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Who does not trust the certificate goes away in the middle; a defect of this file is kept."""
            error = sys.exception()
            if error is not None and not isinstance(error, OSError):
                endpoint.defects.append(error)

    context: ssl.SSLContext = certificate.server_context()
    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
