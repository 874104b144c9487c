"""Every keyword of every HAProxy: the binary's verdict on one-line files, and ours."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import haproxy
import pytest
from haproxy_judge import SPOE, Judge

import spop.engine.haproxy.keywords as keywords_module
from spop.constants import DataType
from spop.engine.config import parse_spoe
from spop.engine.haproxy import Keyword, keywords_of
from spop.engine.haproxy.types import arriving_types

sys.path.insert(0, str(Path(__file__).parent.parent / "ci"))

import haproxy_keywords

ARGUMENTS = {
    "string": "x", "integer": "1", "backend": "agents", "frontend": "first",
    "server": "agents/one", "table": "table", "user list": "users", "IPv4 mask": "24",
    "IPv6 mask": "64", "regex": "x", "Protocol buffers field number": "1",
    "IPv4 address": "192.0.2.1", "IPv6 address": "::1",
}  # fmt: skip
"""An argument of each type."""

GOOD_ARGUMENTS = {
    "accept_date": "ms", "add_item": ",|txn.a", "aes_cbc_dec": "128|txn.a|txn.b|txn.c",
    "aes_cbc_enc": "128|txn.a|txn.b|txn.c", "aes_gcm_dec": "128|txn.a|txn.b|txn.c|txn.d",
    "aes_gcm_enc": "128|txn.a|txn.b|txn.c|txn.d", "bc_rtt": "ms", "bc_rttvar": "ms",
    "be2dec": ":|2", "be2hex": ":|2", "bin": "61", "bool": "true", "concat": "x|txn.a",
    "date": "1|ms", "debug": "x|stderr", "digest": "sha256", "distcc_body": "ARGC",
    "distcc_param": "ARGC", "dump_all_vars": "txn", "fc_pp_tlv": "0xE2", "fc_rtt": "us",
    "fc_rttvar": "us", "fix_tag_value": "MsgType", "hmac": "sha256|a2V5", "http_date": "1|ms",
    "internal.htx_blk.data": "head", "ipv4": "192.0.2.1", "ipv6": "::1", "json": "utf8",
    "json_query": "$.a|int", "jwt_header_query": "$.a|int", "jwt_payload_query": "$.a|int",
    "jwt_verify": "HS256|x", "le2dec": ":|2", "meth": "GET", "mqtt_field_value": "CONNECT|flags",
    "param": "x|&", "payload_lv": "0|1|3", "protobuf": "1|int32", "query": "with_qm",
    "req.payload_lv": "0|1|3", "request_date": "ms", "res.payload_lv": "0|1|3",
    "secure_memcmp": "txn.a", "set-var": "txn.a|ifset", "sha2": "256",
    "ssl_c_s_dn": "CN|1|rfc2253", "strcmp": "txn.a", "ungrpc": "1|int32", "unset-var": "txn.a",
    "uuid": "4", "var": "txn.a", "when": "normal",
}  # fmt: skip
"""Arguments that HAProxy takes, of keywords that don't take all of their types."""

EVENTS = (
    "on-client-session", "on-frontend-tcp-request", "on-frontend-http-request",
    "on-server-session", "on-tcp-response", "on-http-response",
)  # fmt: skip
EVENT = "on-frontend-http-request"
SAMPLES = (
    "str(x)", "int(1)", "bool(true)", "bin(61)", "src", "var(txn.x)", "method", "ipv4(192.0.2.1)"
)  # fmt: skip
"""A fetch of each type."""

KNOWN_TO_DIFFER = {
    "jwt_decrypt_cert": "HAProxy looks for the certificate among those that it has loaded",
    "jwt_verify_cert": "HAProxy looks for the certificate among those that it has loaded",
}
"""The keywords of which HAProxy knows what stands in no SPOE file."""

KNOWN_TO_DIFFER_IN_2_2 = {
    "internal.strm.is_htx": "2.2 has it at fewer places",
    "set-var": "2.2 knows no conditions",
    "ssl_fc_cipherlist_bin": "2.2 takes no argument",
    "ssl_fc_cipherlist_hex": "2.2 takes no argument",
    "ssl_fc_cipherlist_str": "2.2 takes no argument",
    "var": "2.2 takes no default, and compares without a method",
}
"""The keywords of which 2.2's manual does not tell what differs from 2.6."""


def arguments(keyword: Keyword, folder: Path) -> list[str]:
    words = [ARGUMENTS[kind] for kind in keyword.arguments]
    if keyword.kind == "c" and keyword.name.startswith("map"):
        keys = "ip" if keyword.name.startswith("map_ip") else "int"
        words[0] = f"{folder}/{keys}.map"
    good = GOOD_ARGUMENTS.get(keyword.name)
    return [*good.split("|"), *words[good.count("|") + 1 :]][: len(words)] if good else words


def forms(keyword: Keyword, words: list[str]) -> tuple[str, list[str]]:
    """A keyword with the fewest arguments that it needs; and with fewer, more and too many."""
    name, least = keyword.name, keyword.required
    lists = [f"{name}({','.join(words[:count])})" for count in range(len(words) + 1)]
    plain = lists[least] if least else name
    others = {name, f"{name}()", *lists, f"{name}({','.join([*words, '1'])})", f"{name}x"}
    return plain, sorted(others - {plain})


def cases(keyword: Keyword, folder: Path) -> Iterator[str]:
    """The lines of messages that have a keyword."""
    if keyword.kind == "a":
        for rest in ("-m found", "x", "1", "-m str x"):
            yield f"event {EVENT} if {{ {keyword.name} {rest} }}"
        return
    plain, others = forms(keyword, arguments(keyword, folder))
    if keyword.kind == "f":
        for event in EVENTS:
            yield f"args a={plain}\n    event {event}"
        for rest in ("-m found", "x", "-m int 1"):
            yield f"event {EVENT} if {{ {plain} {rest} }}"
        for form in others:
            yield f"args a={form}\n    event {EVENT}"
    else:
        for sample in SAMPLES:
            yield f"args a={sample},{plain}\n    event {EVENT}"
        for after in ("add(1)", "lower", "ipmask(24)", "hex"):
            yield f"args a={SAMPLES[0]},{plain},{after}\n    event {EVENT}"
        for form in others:
            yield f"args a={SAMPLES[0]},{form}\n    event {EVENT}"


def chosen(keywords: list[Keyword]) -> list[Keyword]:
    """All keywords for ``make haproxy``, which names HAProxys; else a sample of them.

    ``SPOP_TEST_SAMPLE=1`` asks for the sample there, too: all take minutes.
    """
    wanted = os.environ.get("SPOP_TEST_HAPROXY") and not os.environ.get("SPOP_TEST_SAMPLE")
    return keywords if wanted else keywords[::20]


def test_the_verdict_on_each_keyword_is_haproxys(haproxy_binary: str, tmp_path: Path) -> None:
    version = haproxy.version(haproxy_binary)
    known = keywords_of(version[:2])
    (tmp_path / "int.map").write_text("1 1\n")
    (tmp_path / "ip.map").write_text("192.0.2.1 1\n")
    keywords = [
        keyword for kind in "fca" for name in sorted(known.names(kind))
        if (keyword := known.find(kind, name))
    ]  # fmt: skip
    judged = [
        (keyword.name, lines) for keyword in chosen(keywords) for lines in cases(keyword, tmp_path)
    ]
    judge = Judge(haproxy_binary, tmp_path)
    branch = f"{version.major}.{version.minor}"
    wrong = []
    for taken in (True, False):
        ours = [lines for _, lines in judged if verdict(lines, branch) is taken]
        for start in range(0, len(ours), 1500):
            part = ours[start : start + 1500]
            refused = judge.refused(part)
            wrong += [lines for n, lines in enumerate(part) if (n in refused) is taken]
    # What is judged among others is judged by an HAProxy whose memory they have changed.
    wrong = [lines for lines in wrong if judge.alone(lines) is not verdict(lines, branch)]
    differing = {name for name, lines in judged if lines in wrong}
    known_to_differ = KNOWN_TO_DIFFER | (KNOWN_TO_DIFFER_IN_2_2 if version < (2, 3) else {})
    assert differing <= known_to_differ.keys(), wrong
    assert len(wrong) <= 4 * len(differing & known_to_differ.keys()), wrong


def test_haproxy_refuses_what_its_table_lacks(haproxy_binary: str, tmp_path: Path) -> None:
    version = haproxy.version(haproxy_binary)
    known = keywords_of(version[:2])
    lacking = [
        keyword for others in map(keywords_of, ((2, 2), (3, 4))) for kind in "fc"
        for name in sorted({*others.names(kind)} - {*known.names(kind)})
        if (keyword := others.find(kind, name))
    ]  # fmt: skip
    plain = [(each, forms(each, arguments(each, tmp_path))[0]) for each in lacking]
    judged = [
        f"args a={text if each.kind == 'f' else f'{SAMPLES[0]},{text}'}\n    event {EVENT}"
        for each, text in plain
    ]
    refused = Judge(haproxy_binary, tmp_path).refused(judged)
    assert [lines for number, lines in enumerate(judged) if number not in refused] == []


@cache
def verdict(lines: str, branch: str) -> bool:
    """Whether we say that HAProxy takes the lines of a message."""
    text = SPOE.format(lines=lines)
    return parse_spoe(text, "f", "test", haproxy_version=branch).config is not None


def test_the_table_is_what_haproxy_prints(haproxy_binary: str) -> None:
    branch = haproxy.version(haproxy_binary)[:2]
    if branch < (2, 6) or not haproxy.supports_tls(haproxy_binary):
        return  # 2.2's is made from its manual.
    shown, printed = haproxy_keywords.read(haproxy_binary)
    known = keywords_of(branch)
    assert shown == f"{branch[0]}.{branch[1]}"
    for kind in "fca":
        assert set(known.names(kind)) == {
            keyword.name for keyword in printed if keyword.kind == kind
        }
    for keyword in printed:
        ours = known.find(keyword.kind, keyword.name)
        assert ours
        arguments = keyword.arguments.replace("[", ",").replace("]", "").split(",")
        assert ours.arguments == tuple(filter(None, arguments))
        assert (ours.type, ours.other) == (keyword.type, keyword.other)


def test_the_table_is_small_and_read_when_it_is_used() -> None:
    table = Path(keywords_module.__file__).with_name("keywords.tsv")
    assert table.stat().st_size < 50_000
    code = "import sys, spop.engine.haproxy.keywords as k; print(k._file.cache_info().currsize)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"


@pytest.mark.parametrize(
    "branch, name, doubt",
    [
        ((2, 7), "bc_rtt", "HAProxy 2.8 has 'bc_rtt' and 2.6 does not: 2.7 may refuse it"),
        ((2, 9), "ssl_ocsp_certid", "HAProxy 2.8 has 'ssl_ocsp_certid' and 3.0 does not"),
        ((2, 7), "baseq", None),
        ((2, 6), "baseq", None),
    ],
)
def test_between_two_tables_a_name_of_one_is_doubtful(
    branch: tuple[int, int], name: str, doubt: str | None
) -> None:
    known = keywords_of(branch)
    assert known.find("f", name)
    assert (known.doubt("f", name) or "").startswith(doubt or "")
    assert (known.doubt("f", name) is None) is (doubt is None)
    assert known.remark is None


def test_a_name_that_both_neighbours_lack_is_unknown() -> None:
    assert keywords_of((2, 7)).find("f", "bs.id") is None


def test_a_program_without_tls_is_no_source_of_the_table(tmp_path: Path) -> None:
    program = tmp_path / "haproxy"
    program.write_text("#!/bin/sh\necho HAProxy version 3.4.0\n")
    program.chmod(0o755)
    with pytest.raises(haproxy_keywords.Refused, match="built without TLS"):
        haproxy_keywords.read(str(program))


def test_types_that_arrive() -> None:
    assert arriving_types("src") == {DataType.IPV4, DataType.IPV6}
    assert arriving_types("req.hdrs") == {DataType.STRING}
    assert arriving_types("req.hdr(host)") == {DataType.STRING}
    assert arriving_types("var(txn.a)") == arriving_types("unheard-of") == set()


def test_what_a_lua_script_registers_is_doubtful(haproxy_binary: str, tmp_path: Path) -> None:
    version = haproxy.version(haproxy_binary)
    script = tmp_path / "x.lua"
    script.write_text(
        'core.register_fetches("seen", function(txn) return "x" end)\n'
        'core.register_converters("twice", function(value) return value end)\n'
    )
    branch = f"{version.major}.{version.minor}"
    for event in EVENTS:
        lines = f"args a=lua.seen(1,2),lua.twice(1),lower b=src,lua.twice,add(1)\n    event {event}"
        judge = Judge(haproxy_binary, tmp_path, f"global\n    lua-load {script}\n")
        assert judge.alone(lines) is verdict(lines, branch), event
    report = parse_spoe(SPOE.format(lines=lines), "f", "test", haproxy_version=branch)
    assert [d.rule for d in report.diagnostics].count("doubtful") == 3
