"""Fetches of the client's connection: addresses, proxies, TLS (sections 7.3.3 and 7.3.4)."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from spop.engine.samples.places import Source
from spop.engine.samples.registry import fetch
from spop.engine.stream import Stream, Tls


@fetch("src", "fc_src", of=Source.CONNECTION)
def src(stream: Stream) -> IPv4Address | IPv6Address | None:
    return stream.source


@fetch("src_port", "fc_src_port", of=Source.CONNECTION)
def src_port(stream: Stream) -> int | None:
    return stream.source_port or None


@fetch("dst", "fc_dst", of=Source.CONNECTION)
def dst(stream: Stream) -> IPv4Address | IPv6Address | None:
    return stream.destination


@fetch("dst_port", "fc_dst_port", of=Source.CONNECTION)
def dst_port(stream: Stream) -> int | None:
    return stream.destination_port or None


@fetch("fe_name")
def fe_name(stream: Stream) -> str | None:
    return stream.frontend


@fetch("be_name", of=Source.BACKEND)
def be_name(stream: Stream) -> str | None:
    return stream.backend


@fetch("fc_http_major", of=Source.CONNECTION)
def fc_http_major(stream: Stream) -> int:
    version = stream.request.version if stream.request else "1"
    return int(version.partition(".")[0])


@fetch("ssl_fc", of=Source.SESSION)
def ssl_fc(stream: Stream) -> bool:
    return stream.tls is not None


def _register_tls(name: str, gives: Any, read: Callable[[Tls], Any]) -> None:
    def tls_fetch(stream: Stream) -> Any:
        return read(stream.tls) if stream.tls else None

    tls_fetch.__annotations__["return"] = gives
    fetch(name, of=Source.SESSION)(tls_fetch)


_register_tls("ssl_fc_protocol", str, lambda tls: tls.protocol)
_register_tls("ssl_fc_cipher", str, lambda tls: tls.cipher)
_register_tls("ssl_fc_alpn", str, lambda tls: tls.alpn)
_register_tls("ssl_fc_sni", str, lambda tls: tls.sni)
_register_tls("ssl_fc_has_sni", bool, lambda tls: tls.sni is not None)
_register_tls("ssl_fc_use_keysize", int, lambda tls: tls.key_size)
_register_tls("ssl_fc_session_id", bytes, lambda tls: tls.session_id)
_register_tls("ssl_fc_is_resumed", bool, lambda tls: tls.resumed)
_register_tls("ssl_fc_has_crt", bool, lambda tls: tls.client_certificate)
