"""TLS between HAProxy or a client and the server, with certificates of both sides."""

from __future__ import annotations

import contextlib
import signal
import socket
import ssl
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
import trustme
from haproxy import HAProxy, supports_tls, wait_until
from serving import served, wait_until_serving

from spop import Ack, Agent, Message, codec
from spop.connection import EngineConnection
from spop.server import Server


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def files(authority: trustme.CA, tmp_path: Path) -> dict[str, str]:
    """The server's certificate, its key and the authority, as options name them."""
    return write_certificate(authority, tmp_path)


def write_certificate(authority: trustme.CA, folder: Path) -> dict[str, str]:
    issued = authority.issue_cert("localhost", "127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    issued.private_key_pem.write_to_path(str(folder / "key.pem"))
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    return {"tls_cert": f"{folder}/cert.pem", "tls_key": f"{folder}/key.pem"}


@pytest.fixture
def agent() -> Agent:
    agent = Agent()

    @agent.message("check")
    def check(ip: IPv4Address) -> dict[str, Any]:
        return {"txn.score": ip.packed[-1]}

    @agent.message("length", blocking=True)
    def length(body: bytes) -> dict[str, Any]:
        return {"sess.length": len(body), "sess.echo": body[:15_000]}

    return agent


@contextlib.contextmanager
def connected(
    port: int, authority: trustme.CA, certificate: trustme.LeafCert | None = None
) -> Iterator[ssl.SSLSocket]:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if certificate is not None:
        certificate.configure_cert(context)
    with (
        socket.create_connection(("127.0.0.1", port), 10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as sock,
    ):
        yield sock


def exchange(sock: ssl.SSLSocket, *messages: Message) -> list[Ack]:
    """HELLO, a NOTIFY for each message all at once, and their ACKs."""
    protocol = EngineConnection(max_frame_size=500_000)
    sock.sendall(protocol.data_to_send())
    while protocol.peer is None:
        protocol.receive_data(sock.recv(4096))
    for number, message in enumerate(messages):
        protocol.notify(number, 1, [message])
    sock.sendall(protocol.data_to_send())
    acks: list[Any] = []
    while protocol.waiting:
        acks += protocol.receive_data(sock.recv(65536))
    return sorted(acks, key=lambda ack: ack.stream_id)


def works(server: Server, authority: trustme.CA, certificate: trustme.LeafCert | None) -> bool:
    try:
        with connected(server.address.port, authority, certificate) as sock:
            (ack,) = exchange(sock, Message("check", ip=IPv4Address(3)))
            return ack.variables == {"txn.score": 3}
    except OSError:
        return False


@pytest.mark.parametrize("threads", [1, 2])
def test_exchanges_over_tls(
    agent: Agent, authority: trustme.CA, files: dict[str, str], threads: int
) -> None:
    with (
        agent.serve_in_background(threads=threads, **files) as server,
        connected(server.address.port, authority) as sock,
    ):
        bodies = [bytes(size) for size in (0, 1, 16_000, 400_000)] * 5
        acks = exchange(sock, *(Message("length", body=body) for body in bodies))
        assert [ack.variables["sess.length"] for ack in acks] == list(map(len, bodies))
        assert server.connections()[0]["tls"]


def test_clients_must_show_a_certificate_where_that_is_asked_for(
    agent: Agent, authority: trustme.CA, files: dict[str, str], tmp_path: Path
) -> None:
    with agent.serve_in_background(**files, tls_client_ca=f"{tmp_path}/ca.pem") as server:
        assert works(server, authority, authority.issue_cert("client@example.org"))
        assert not works(server, authority, None)
        assert not works(server, authority, trustme.CA().issue_cert("client@example.org"))
        assert works(server, authority, authority.issue_cert("client@example.org"))


def test_what_is_no_tls_is_refused_and_disturbs_nobody(
    agent: Agent, authority: trustme.CA, files: dict[str, str]
) -> None:
    with (
        agent.serve_in_background(**files) as server,
        socket.create_connection(("127.0.0.1", server.address.port), 10) as plain,
    ):
        plain.sendall(EngineConnection().data_to_send())
        with contextlib.suppress(ConnectionResetError):
            while data := plain.recv(4096):
                assert not codec_frames(data)
        assert works(server, authority, None)


def codec_frames(data: bytes) -> list[Any]:
    with contextlib.suppress(Exception):
        return codec.decode_frames(data)[0]
    return []


def test_a_reload_takes_new_certificates(
    authority: trustme.CA, files: dict[str, str], tmp_path: Path
) -> None:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in files.items()]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with served("--bind", f"127.0.0.1:{port}", *options) as process:
        wait_until_serving(process)
        old = serial_number(port, authority)
        assert serial_number(port, authority) == old
        write_certificate(authority, tmp_path)
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: serial_number(port, authority) != old, "the new certificate")


def serial_number(port: int, authority: trustme.CA) -> object:
    with connected(port, authority) as sock:
        certificate = sock.getpeercert()
        assert certificate is not None
        return certificate["serialNumber"]


def test_haproxy_speaks_tls_to_the_agent(
    haproxy_binary: str,
    agent: Agent,
    authority: trustme.CA,
    files: dict[str, str],
    tmp_path: Path,
) -> None:
    if not supports_tls(haproxy_binary):
        pytest.skip("it is built without TLS")
    client = authority.issue_cert("haproxy@example.org")
    client.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "client.pem"))
    with (
        agent.serve_in_background(**files, tls_client_ca=f"{tmp_path}/ca.pem") as server,
        HAProxy(
            haproxy_binary,
            tmp_path,
            agent=f"{server.address} ssl verify required ca-file {tmp_path}/ca.pem "
            f"crt {tmp_path}/client.pem check-ssl",
            spoe=SPOE,
            rules="http-request redirect location /%[var(txn.test.score)]",
        ) as proxy,
    ):
        proxy.wait_until_up()
        answers = list(proxy.requests(200, concurrency=8))
    assert not [a for a in answers if a.location != f"/{a.source.rpartition('.')[2]}"]


SPOE = """
spoe-agent test-agent
    messages check
    option var-prefix test
    timeout hello 5s
    timeout idle 1m
    timeout processing 10s

spoe-message check
    args ip=src
    event on-frontend-http-request
"""


@pytest.mark.parametrize(
    ("cert", "key", "complaint"),
    [
        ("cert.pem", None, "tls_cert: cannot use .*/cert.pem: there is no private key in it"),
        ("cert.pem", "ca.pem", "tls_key: cannot use .*/ca.pem: there is no private key in it"),
        ("cert.pem", "other.pem", "cert.pem: the private key in .*/other.pem is that of another"),
        ("key.pem", None, "cannot use .*/key.pem: there is no certificate in it"),
        ("cert.pem", "none.pem", "cannot use .*/none.pem: No such file"),
    ],
)
def test_what_a_certificate_lacks_is_said(
    authority: trustme.CA, tmp_path: Path, cert: str, key: str | None, complaint: str
) -> None:
    write_certificate(authority, tmp_path)
    authority.issue_cert("x").private_key_pem.write_to_path(str(tmp_path / "other.pem"))
    files: dict[str, Any] = {
        "tls_cert": f"{tmp_path}/{cert}",
        "tls_key": key and f"{tmp_path}/{key}",
    }
    with pytest.raises(ValueError, match=complaint):
        Agent().serve_in_background(**files).start()
