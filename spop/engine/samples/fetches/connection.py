"""Fetches of the client's connection: addresses, proxies, TLS (sections 7.3.3 and 7.3.4)."""

from __future__ import annotations

from functools import partial
from ipaddress import IPv4Address, IPv6Address
from operator import attrgetter

from spop.engine.samples.places import Source
from spop.engine.samples.registry import fetch, fetch_part
from spop.engine.stream import Stream

_ADDRESS = IPv4Address | IPv6Address

fetch("src", "fc_src", of=Source.CONNECTION, gives=_ADDRESS)(attrgetter("source"))
fetch("dst", "fc_dst", of=Source.CONNECTION, gives=_ADDRESS)(attrgetter("destination"))
fetch("fe_name", gives=str)(attrgetter("frontend"))
fetch("be_name", of=Source.BACKEND, gives=str)(attrgetter("backend"))


@fetch("src_port", "fc_src_port", of=Source.CONNECTION)
def src_port(stream: Stream) -> int | None:
    return stream.source_port or None


@fetch("dst_port", "fc_dst_port", of=Source.CONNECTION)
def dst_port(stream: Stream) -> int | None:
    return stream.destination_port or None


@fetch("fc_http_major", of=Source.CONNECTION)
def fc_http_major(stream: Stream) -> int:
    version = stream.request.version if stream.request else "1"
    return int(version.partition(".")[0])


@fetch("ssl_fc", of=Source.SESSION)
def ssl_fc(stream: Stream) -> bool:
    return stream.tls is not None


_tls_fetch = partial(fetch_part, of=Source.SESSION, whole=attrgetter("tls"))

_tls_fetch("ssl_fc_protocol", gives=str, read=attrgetter("protocol"))
_tls_fetch("ssl_fc_cipher", gives=str, read=attrgetter("cipher"))
_tls_fetch("ssl_fc_alpn", gives=str, read=attrgetter("alpn"))
_tls_fetch("ssl_fc_sni", gives=str, read=attrgetter("sni"))
_tls_fetch("ssl_fc_has_sni", gives=bool, read=lambda tls: tls.sni is not None)
_tls_fetch("ssl_fc_use_keysize", gives=int, read=attrgetter("key_size"))
_tls_fetch("ssl_fc_session_id", gives=bytes, read=attrgetter("session_id"))
_tls_fetch("ssl_fc_is_resumed", gives=bool, read=attrgetter("resumed"))
_tls_fetch("ssl_fc_has_crt", gives=bool, read=attrgetter("client_certificate"))
