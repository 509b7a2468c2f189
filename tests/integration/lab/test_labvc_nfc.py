"""What the site's hosts promise on the wire, asked with plain sockets and no client code of ours."""

import hashlib
import http.client
import os
import re
import socket
import ssl
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.lab.vcenter import (
    MIB,
    PASSWORD,
    Session,
    Site,
    dial,
    running,
    session,
    unchecked,
)

pytestmark = pytest.mark.lab

CLASSIC = 264
READ_ONLY, READ_WRITE = 0x1E, 0x1A


@pytest.fixture
def site(labvc_binary: Path, tmp_path: Path) -> Iterator[Site]:
    image = tmp_path / "image.raw"
    with image.open("wb") as file:
        file.truncate(8 * MIB)
        file.seek(MIB)
        file.write(os.urandom(MIB))
        file.seek(4 * MIB + 4096)
        file.write(b"text " * 2000)
    store = {"name": "ds1", "path": str(tmp_path / "ds1"), "capacity_bytes": 1 << 40}
    plan = {
        "password": PASSWORD,
        "datacenters": [
            {
                "name": "Lab",
                "clusters": [{"name": "C1", "hosts": ["esx1", "esx2"]}],
                "datastores": [store],
            }
        ],
        "vms": [
            {"name": "off", "host": "esx1", "disks": [{"image": str(image), "thin": True}]},
            {"name": "on", "host": "esx2", "power": "on", "disks": [{"capacity_bytes": MIB}]},
        ],
    }
    with running(labvc_binary, tmp_path, plan) as made:
        yield made


@pytest.fixture
def vc(site: Site) -> Iterator[Session]:
    with session(site) as made:
        yield made


def ask(site: Site, vc: Session, method: str, inner: str = "") -> str:
    """A raw SOAP call with the session's cookie; attributes stand before `type`, as pyVmomi writes."""
    connection = http.client.HTTPSConnection(site.ready["vcenter"], context=unchecked(), timeout=20)
    target = ("ServiceInstance", "ServiceInstance")
    if method.startswith("Nfc"):
        target = ("NfcService", "nfcService")
    body = (
        '<Envelope xmlns="http://schemas.xmlsoap.org/soap/envelope/"><Body>'
        f'<{method} xmlns="urn:vim25"><_this versionId="8.0.1.0" type="{target[0]}">{target[1]}</_this>'
        f"{inner}</{method}></Body></Envelope>"
    )
    headers = {"Cookie": vc.si._stub.cookie.split(";")[0], "SOAPAction": '"urn:vim25/8.0.1.0"'}
    connection.request("POST", "/sdk", body=body, headers=headers)
    text = connection.getresponse().read().decode()
    connection.close()
    return text


def ticket(site: Site, vc: Session, vm: str, *, write: bool = False, key: int = 2000) -> dict[str, str]:
    method = "NfcRandomAccessOpenDisk" if write else "NfcRandomAccessOpenReadonly"
    moref = vc.vm(vm)._moId
    text = ask(
        site,
        vc,
        method,
        f'<vm versionId="8.0.1.0" type="VirtualMachine">{moref}</vm>'
        f'<diskDeviceKey versionId="8.0.1.0">{key}</diskDeviceKey>',
    )
    return dict(re.findall(r"<(\w+)>([^<]+)</\1>", text))


class Connection:
    """One NFC connection up to the AIO switch, then raw requests."""

    def __init__(self, found: dict[str, str], *, secure: bool = False, order: str = "early") -> None:
        self.found = found
        self.op = 0
        raw = dial(f"{found['host']}:{found['port']}")
        self.greeting = _line(raw)
        tls = unchecked().wrap_socket(raw)
        der = tls.getpeercert(binary_form=True)
        assert der is not None
        self.sha1 = hashlib.sha1(der, usedforsecurity=False).hexdigest()
        self.sha256 = hashlib.sha256(der).hexdigest()
        tls.sendall(f"SESSION {found['sessionId']}\r\nBANNER \r\n".encode())
        assert _line(tls).startswith("220")
        self.told = ""
        if "SHA256 supported" in self.greeting:
            tls.sendall(b"THUMBPRINT_SHA2 PlainText\r\n")
            self.told = _line(tls).split()[1].replace(":", "").lower()
        service = found["service"] + ("ssl" if secure else "")
        tls.sendall(f"PROXY {service}\r\n".encode())
        self.answer = _line(tls)
        if not self.answer.startswith("200"):
            tls.close()
            return
        # TLS is abandoned without a word; what follows comes raw, or in a new TLS session.
        self.sock: socket.socket = socket.socket(fileno=tls.detach())
        self.sock.settimeout(20)
        self.second = ""
        if secure:
            wrapped = unchecked().wrap_socket(self.sock)
            der = wrapped.getpeercert(binary_form=True)
            assert der is not None
            self.second = hashlib.sha256(der).hexdigest()
            self.sock = wrapped
        self._handshake(order)

    def _handshake(self, order: str) -> None:
        self.sock.sendall(struct.pack("<I9s", 43, b"PlainText").ljust(CLASSIC, b"\0"))
        self.sock.sendall(struct.pack("<I", 33).ljust(CLASSIC, b"\0"))
        if order == "early":  # the host answers at once
            assert struct.unpack_from("<I12xI", self._exactly(CLASSIC)) == (36, 1)
        self.sock.sendall(struct.pack("<II", 51, 11).ljust(CLASSIC, b"\0"))
        if order == "late":
            assert struct.unpack_from("<I12xI", self._exactly(CLASSIC)) == (36, 1)
        assert struct.unpack_from("<II", self._exactly(CLASSIC)) == (51, 11)
        self.sock.sendall(struct.pack("<III", 54, 4, 7).ljust(CLASSIC, b"\0"))
        self.sock.sendall(b"testnbdmode")
        self.sock.sendall(struct.pack("<II", 55, 3).ljust(CLASSIC, b"\0"))
        self.sock.sendall(struct.pack("<I", 52).ljust(CLASSIC, b"\0"))
        assert struct.unpack_from("<I", self._exactly(CLASSIC)) == (52,)

    def _exactly(self, count: int) -> bytes:
        found = b""
        while len(found) < count:
            more = self.sock.recv(count - len(found))
            if not more:
                raise EOFError(f"{len(found)} of {count} bytes")
            found += more
        return found

    def send(self, kind: int, payload: bytes, extra: bytes = b"") -> int:
        op, self.op = self.op, self.op + 1
        self.sock.sendall(struct.pack("<IIII", 0xA100DA7A, kind, len(payload), op) + payload + extra)
        return op

    def receive(self) -> tuple[int, int, bytes]:
        magic, kind, size, op = struct.unpack("<IIII", self._exactly(16))
        assert magic == 0xA100DA7A
        return kind, op, self._exactly(size)

    def error(self) -> tuple[int, str]:
        kind, _, payload = self.receive()
        assert kind == 1
        code, length = struct.unpack("<Q4xI", payload)
        return code, self._exactly(length).decode()

    def start(self, buffer: int = 65536) -> None:
        self.send(2, struct.pack("<IIII", 0, buffer, 4, 0))
        assert self.receive() == (2, self.op - 1, bytes(16))
        self.send(9, bytes(12))
        assert self.receive()[2] == struct.pack("<III", 1675000, 1675000, 1)
        self.send(22, struct.pack("<I", 1))
        assert self.receive()[2] == struct.pack("<I", 1)

    def open(self, path: str, flags: int = READ_ONLY) -> tuple[int, int]:
        self.send_open(path, flags)
        kind, _, reply = self.receive()
        assert (kind, struct.unpack_from("<Q", reply)[0]) == (4, 0)
        handle, capacity = struct.unpack_from("<Q", reply, 8)[0], struct.unpack_from("<Q", reply, 28)[0]
        assert handle > 1 << 63
        return handle, capacity

    def send_open(self, path: str, flags: int = READ_ONLY) -> None:
        name = path.encode()
        self.send(4, struct.pack("<I12xII36x", len(name), 2, flags), name)

    def ask_read(self, handle: int, offset: int, length: int, compression: int = 0) -> int:
        fields = (handle, 1, compression, offset, length, 0, length, length, 0)
        return self.send(7, struct.pack("<QIIQIIIII", *fields))

    def fragment(self) -> tuple[int, int, int, bytes]:
        """opId, offset inside the request, compression and data of one reply."""
        kind, op, payload = self.receive()
        assert kind == 7
        status, direction, packing, _, _, inside, length, wire, _ = struct.unpack("<QIIQIIIII", payload)
        assert (status, direction) == (0, 1)
        data = self._exactly(wire)
        if packing == 1:
            data = zlib.decompress(data)
        elif packing == 3:
            data = _unskip(data)
        assert packing == 2 or len(data) == length
        return op, inside, packing, data

    def read(self, handle: int, offset: int, length: int, compression: int = 0) -> bytes:
        op = self.ask_read(handle, offset, length, compression)
        found = bytearray(length)
        done = 0
        while done < length:
            got, inside, _, data = self.fragment()
            assert got == op
            found[inside : inside + len(data)] = data
            done += len(data)
        return bytes(found)

    def close(self) -> None:
        self.sock.close()


def _unskip(packed: bytes) -> bytes:
    total, at = struct.unpack_from("<I", packed)[0], 8
    found = bytearray(total)
    while at < len(packed):
        offset, length = struct.unpack_from("<II", packed, at)
        found[offset : offset + length] = packed[at + 8 : at + 8 + length]
        at += 8 + length
    return bytes(found)


def _line(sock: socket.socket) -> str:
    found = b""
    while not found.endswith(b"\n"):
        more = sock.recv(1)
        assert more, found
        found += more
    return found.decode().strip()


def _open(site: Site, vc: Session, **options: Any) -> tuple[Connection, int]:
    made = Connection(ticket(site, vc, "off"), **options)
    made.start()
    handle, capacity = made.open("[ds1] off/off.vmdk")
    assert capacity == 8 * MIB
    return made, handle


def test_service_and_tickets(site: Site, vc: Session) -> None:
    assert 'type="NfcService">nfcService</nfcService>' in ask(site, vc, "RetrieveInternalContent")
    found = ticket(site, vc, "off")
    assert (found["service"], found["serviceVersion"]) == ("vpxa-nfc", "1.1")
    assert f"{found['host']}:{found['port']}" == site.hosts["esx1"]
    moref = vc.vm("off").runtime.host._moId
    version = ask(
        site,
        vc,
        "NfcGetServerNfcLibVersion",
        f'<hostForAccess type="HostSystem">{moref}</hostForAccess>',
    )
    assert "<returnval>11</returnval>" in version
    assert "InvalidArgument" in ask(site, vc, "NfcGetServerNfcLibVersion")


@pytest.mark.parametrize("secure", [False, True])
def test_read_in_fragments(site: Site, vc: Session, secure: bool) -> None:
    connection, handle = _open(site, vc, secure=secure)
    expected = site.live("off").read_bytes()
    assert connection.sha1 == connection.found["sslThumbprint"].replace(":", "").lower()
    assert connection.told == connection.sha256
    assert connection.second == (connection.sha256 if secure else "")
    for compression in (0, 1, 3):
        assert connection.read(handle, 512, 129 * 512, compression) == expected[512 : 130 * 512]
        assert connection.read(handle, 4 * MIB, MIB, compression) == expected[4 * MIB : 5 * MIB]
    connection.send(5, struct.pack("<Q", handle))
    assert connection.receive() == (5, connection.op - 1, bytes(8))
    connection.send(3, bytes(4))
    assert connection.receive() == (3, connection.op - 1, bytes(4))
    connection.close()
    assert site.control("GET", "/stats")["disk_bytes_read"] == {
        "[ds1] off/off.vmdk": 3 * (129 * 512 + MIB)
    }


def test_reads_are_pipelined(site: Site, vc: Session) -> None:
    site.fault("nfc-newest-first", requests=4)
    connection, handle = _open(site, vc)
    asked = [connection.ask_read(handle, i * 65536, 65536) for i in range(4)]
    assert [connection.fragment()[0] for _ in asked] == asked[::-1]
    connection.close()


def test_a_write_has_one_reply(site: Site, vc: Session) -> None:
    connection = Connection(ticket(site, vc, "off", write=True))
    connection.start()
    handle, _ = connection.open("[ds1] off/off.vmdk", READ_WRITE)
    data = os.urandom(65536) + b"Z" * 512
    op = connection.op
    for inside, packing, wire in ((0, 0, data[:65536]), (65536, 1, zlib.compress(data[65536:]))):
        connection.op = op
        fields = (
            handle,
            0,
            packing,
            MIB,
            len(data),
            inside,
            min(65536, len(data) - inside),
            len(wire),
            0,
        )
        connection.send(7, struct.pack("<QIIQIIIII", *fields), wire)
    kind, got, payload = connection.receive()
    assert (kind, got) == (7, op)
    assert struct.unpack("<QIIQIIIII", payload) == (0, 0, 0, MIB, 66048, 0, 66048, 66048, 0)
    assert connection.read(handle, MIB, 66048) == data
    connection.close()
    assert site.live("off").read_bytes()[MIB : MIB + 66048] == data


def test_allocation_is_what_the_file_holds(site: Site, vc: Session) -> None:
    connection, handle = _open(site, vc)

    def query(chunk: int, start: int, count: int) -> bytes:
        connection.send(13, struct.pack("<QQQQQQ", handle, 0, chunk, start, count, 0))
        kind, _, payload = connection.receive()
        assert (kind, struct.unpack_from("<Q", payload, 32)[0]) == (13, count)
        return connection._exactly(4 * ((count + 31) // 32))

    bits = int.from_bytes(query(65536, 0, 128), "little")
    assert bits == ((1 << 16) - 1) << 16 | 1 << 64
    assert int.from_bytes(query(MIB, MIB, 7), "little") == 0b0001001
    connection.send(13, struct.pack("<QQQQQQ", handle, 0, 65536, 4096, 1, 0))
    assert connection.error()[0] == 3
    connection.close()


def test_refusals(site: Site, vc: Session) -> None:
    found = ticket(site, vc, "off")
    connection = Connection(found)
    connection.start()
    for path, flags in (("[ds1] on/on.vmdk", READ_ONLY), ("[ds1] off/off.vmdk", READ_WRITE)):
        connection.send_open(path, flags)
        code, text = connection.error()
        assert code == 11
        assert "permission check failed" in text
        assert connection.receive() == (4, connection.op - 1, bytes(60))
    connection.send(2, struct.pack("<IIII", 0, 16 * MIB, 1, 0))
    assert connection.error()[0] == 5
    connection.close()
    assert Connection(found).answer.startswith("530")  # spent
    running_vm = Connection(ticket(site, vc, "on"))
    running_vm.start()
    running_vm.send_open("[ds1] on/on.vmdk")
    assert "multiwriter" in running_vm.error()[1]
    running_vm.close()
    vc.snapshot(vc.vm("on"))
    frozen = Connection(ticket(site, vc, "on"))
    frozen.start()
    assert frozen.open("[ds1] on/on.vmdk")[1] == MIB
    frozen.close()


def test_an_open_disk_locks_the_removal(site: Site, vc: Session) -> None:
    vm = vc.vm("off")
    snapshot = vc.snapshot(vm)
    connection, _ = _open(site, vc)
    assert type(vc.attempt(lambda: snapshot.RemoveSnapshot_Task(False))).__name__.endswith("FileLocked")
    connection.close()
    vc.wait_until(lambda: not site.control("GET", "/stats")["hosts"]["esx1"]["connections_open"])
    vc.wait(vm.ConsolidateVMDisks_Task())
    assert vc.disk(vm).backing.fileName == "[ds1] off/off.vmdk"


def test_connection_faults(site: Site, vc: Session) -> None:
    site.fault("nfc-no-sha256", count=1)
    site.fault("nfc-36-after-51", count=1)
    connection, handle = _open(site, vc, order="late")
    assert "SHA256" not in connection.greeting
    cut = site.fault("nfc-cut", after_bytes=MIB, count=1)
    connection.read(handle, 0, MIB)
    with pytest.raises(EOFError):
        connection.read(handle, 0, MIB)
    assert site.fired(cut) == 1
    connection.close()
    site.fault("nfc-wrong-certificate", count=1)
    connection, _ = _open(site, vc, secure=True)
    assert connection.second != connection.sha256
    connection.close()
    site.fault("nfc-busy", count=1)
    raw = dial(site.hosts["esx1"])
    assert _line(raw).startswith("421")
    raw.close()


def test_data_faults(site: Site, vc: Session) -> None:
    connection, handle = _open(site, vc)
    expected = site.live("off").read_bytes()
    for kind in ("nfc-shuffle", "nfc-odd-fragments"):
        fault = site.fault(kind, count=1)
        assert connection.read(handle, MIB, MIB) == expected[MIB : 2 * MIB]
        assert site.fired(fault) == 1
    site.fault("nfc-read-error", count=1, path_contains="off.vmdk")
    connection.ask_read(handle, 0, 512)
    assert connection.error()[0] == 7
    site.fault("nfc-bad-fragment", variant="wrong-opid", count=1)
    op = connection.ask_read(handle, 0, 512)
    assert connection.fragment()[0] != op
    site.fault("nfc-no-allocation", count=1)
    connection.send(13, struct.pack("<QQQQQQ", handle, 0, 65536, 0, 1, 0))
    assert connection.error()[0] == 6
    connection.close()


def test_strict_host_overlooks_glued_messages(site: Site, vc: Session) -> None:
    site.fault("nfc-strict-records", count=1)
    connection, handle = _open(site, vc, secure=True)
    assert isinstance(connection.sock, ssl.SSLSocket)
    heads = []
    for i in range(2):
        op, connection.op = connection.op, connection.op + 1
        fields = (handle, 1, 0, i * 512, 512, 0, 512, 512, 0)
        heads.append(struct.pack("<IIII", 0xA100DA7A, 7, 44, op) + struct.pack("<QIIQIIIII", *fields))
    connection.sock.sendall(b"".join(heads))
    assert connection.fragment()[0] == connection.op - 2
    connection.ask_read(handle, 1024, 512)  # wakes the host up
    assert connection.fragment()[0] == connection.op - 2
    assert site.control("GET", "/stats")["hosts"]["esx1"]["record_stalls"] == 2
    connection.close()
