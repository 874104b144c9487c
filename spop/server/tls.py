"""TLS on the server's side: a context from files, and a socket that never blocks."""

from __future__ import annotations

import contextlib
import socket
import ssl

from spop.certificates import load_certificate
from spop.errors import reason
from spop.options import Options


def server_context(certificate: str, options: Options) -> ssl.SSLContext:
    """The context of the options, with their files read now. `certificate` is their `tls_cert`.

    Raises:
        ValueError: a file can't be read or used. The message names it.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        load_certificate(context, certificate, options.tls_key)
    except ValueError as error:
        names = "tls_cert, tls_key" if options.tls_key else "tls_cert"
        raise ValueError(f"{names}: cannot use {error}") from None
    if options.tls_client_ca:
        try:
            context.load_verify_locations(options.tls_client_ca)
        except (OSError, ssl.SSLError) as error:
            name = options.tls_client_ca
            raise ValueError(f"tls_client_ca: cannot use {name}: {reason(error)}") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class TLSSocket:
    """The methods of a socket that a loop uses, over TLS. The first reads do the handshake.

    Attributes:
        wants_write: TLS has to write before it can read.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        sock.setblocking(False)
        sock.getpeername()  # If the peer has reset it. SSLSocket fails, too, but is not closed.
        self._ssl = context.wrap_socket(
            sock, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=True
        )
        self._ready = False
        self.family: int = sock.family
        self.wants_write: bool = False

    def fileno(self) -> int:
        return self._ssl.fileno()

    def pending(self) -> int:
        """Bytes that TLS has received already: the socket does not become ready for them."""
        return self._ssl.pending() if self._ready else 0

    def recv_into(self, buffer: bytearray | memoryview) -> int:
        """As `socket.recv_into`, but it takes all bytes that TLS holds, if they fit.

        Raises:
            BlockingIOError: there is nothing yet.
            OSError: the connection or its TLS failed.
        """
        self.wants_write = False
        try:
            if not self._ready:
                self._ssl.do_handshake()
                self._ready = True
            return self._fill(memoryview(buffer))
        except ssl.SSLWantReadError:
            raise BlockingIOError from None
        except ssl.SSLWantWriteError:
            self.wants_write = True
            raise BlockingIOError from None

    def _fill(self, buffer: memoryview) -> int:
        size = self._ssl.recv_into(buffer)
        while 0 < size < len(buffer) and self._ssl.pending():
            size += self._ssl.recv_into(buffer[size:])
        return size

    def send(self, data: bytes | bytearray) -> int:
        """As `socket.send`.

        Raises:
            BlockingIOError: nothing can be sent yet.
            OSError: the connection or its TLS failed.
        """
        if not self._ready:
            raise BlockingIOError
        try:
            return self._ssl.send(data)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None

    def shutdown(self, how: int) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._ssl.setblocking(False)
            self._ssl.unwrap()
        self._ssl.shutdown(how)

    def close(self) -> None:
        self._ssl.close()
