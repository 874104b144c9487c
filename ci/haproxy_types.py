"""Make the table of the SPOP types that really arrive, by running each fetch through HAProxy.

    python ci/haproxy_types.py HAPROXY...

Each HAProxy asks an agent with every fetch of its table that needs no arguments but those of
`GOOD`, at the request and at the response of a few HTTP requests. The result is
``spop/engine/haproxy/types.tsv``: a fetch and the types that its values had. A fetch that was never
available has no row.
"""

from __future__ import annotations

import http.client
import http.server
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from haproxy import HAProxy, version  # noqa: E402

from spop import Agent, Message  # noqa: E402
from spop.engine.haproxy import Keyword, keywords_of  # noqa: E402

TARGET = ROOT / "spop" / "engine" / "haproxy" / "types.tsv"
GOOD = {
    "bin": "61", "bool": "true", "int": "1", "ipv4": "192.0.2.1", "ipv6": "2001:db8::1",
    "meth": "GET", "str": "x", "env": "PATH", "var": "txn.none", "req.fhdr": "host",
    "req.hdr": "host", "hdr": "host", "req.hdr_ip": "x-ip", "hdr_ip": "x-ip", "res.hdr": "via",
    "req.hdr_val": "x-int", "hdr_val": "x-int", "urlp": "a", "url_param": "a", "urlp_val": "a",
    "req.cook": "c", "cook": "c", "req.cook_val": "n", "cook_val": "n", "cookie": "c",
    "req.body_param": "b", "shdr": "via", "res.fhdr": "via", "res.cook": "c", "scook": "c",
    "fc_rtt": "us", "fc_rttvar": "us", "bc_rtt": "us", "bc_rttvar": "us", "nbsrv": "agents",
    "req.payload": "0,4", "res.payload": "0,4", "capture.req.hdr": "0",
}  # fmt: skip
"""Arguments of the fetches that say nothing without."""
LEFT_OUT = ("internal.", "acl", "dump_all_vars", "var")
REQUEST, RESPONSE = 3, 16
"""The columns of the places of an HTTP request and of an HTTP response."""
PER_MESSAGE = 40


def main() -> None:
    found: dict[str, set[str]] = defaultdict(set)
    for binary in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder:
            ask(binary, Path(folder), found)
    rows = [f"{name}\t{' '.join(sorted(types))}" for name, types in sorted(found.items())]
    TARGET.write_text("\n".join([*rows, ""]))
    print(f"{TARGET}: {len(rows)} rows")


def fetches(binary: str, column: int) -> list[tuple[str, str]]:
    """Name and expression of each fetch that can be had at a place."""
    known = keywords_of(version(binary)[:2])
    keywords = (known.find("f", name) for name in sorted(known.names("f")))
    return [
        (keyword.name, expression(keyword))
        for keyword in keywords
        if keyword and keyword.other[column] == "Y" and not keyword.name.startswith(LEFT_OUT)
        and (keyword.required == 0 or keyword.name in GOOD)
        and (keyword.arguments[:1] != ("backend",) or keyword.name in GOOD)
        and "table" not in keyword.arguments[:1] and "server" not in keyword.arguments
    ]  # fmt: skip


def expression(keyword: Keyword) -> str:
    return f"{keyword.name}({GOOD[keyword.name]})" if keyword.name in GOOD else keyword.name


def messages(binary: str) -> Iterator[tuple[str, str, list[tuple[str, str]]]]:
    """Name, event and fetches of each message."""
    events = ((REQUEST, "on-frontend-http-request"), (RESPONSE, "on-http-response"))
    for column, event in events:
        everything = fetches(binary, column)
        for start in range(0, len(everything), PER_MESSAGE):
            yield f"m{column}-{start}", event, everything[start : start + PER_MESSAGE]


def ask(binary: str, folder: Path, found: dict[str, set[str]]) -> None:
    agent = Agent()

    def note(message: Message) -> None:
        for name, value in zip(message.names, message.values, strict=True):
            if value is not None:
                found[name].add(kind_of(value))

    sections = list(messages(binary))
    for name, _, _ in sections:
        agent.message(name)(note)
    spoe = "spoe-agent types\n    messages {}\n    timeout processing 5s\n{}".format(
        " ".join(name for name, _, _ in sections),
        "".join(
            f"spoe-message {name}\n    event {event}\n"
            + "".join(f"    args {name}={text}\n" for name, text in asked)
            for name, event, asked in sections
        ),
    )
    options = (
        "option http-buffer-request\n    declare capture request len 9\n    unique-id-format x"
    )
    web = serve_web()
    with (
        agent.serve_in_background("127.0.0.1:0") as server,
        HAProxy(
            binary, folder, agent=str(server.address), spoe=spoe, frontend_options=options,
            rules=f"default_backend web\n\nbackend web\n    server web 127.0.0.1:{web}",
        ) as proxy,
    ):  # fmt: skip
        proxy.wait_until_up()
        for method, body in (("GET", None), ("POST", "b=1&c=2")):
            send(proxy.port, method, body)


class Answering(http.server.BaseHTTPRequestHandler):
    """Answers requests with headers that fetches of the response look for."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        for name, value in (("Via", "x"), ("Set-Cookie", "c=1"), ("Content-Length", "2")):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"ok")

    do_POST = do_GET

    def log_message(self, *args: object) -> None:
        """Say nothing."""


def serve_web() -> int:
    """The port of a web server that runs until the script ends."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_port


def send(port: int, method: str, body: str | None) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    headers = {
        "Cookie": "c=1; n=5", "X-IP": "192.0.2.1", "X-Int": "5", "Authorization": "Basic YTpi",
        "Content-Type": "application/x-www-form-urlencoded",
    }  # fmt: skip
    connection.request(method, "/path?a=1", body, headers)
    connection.getresponse().read()
    connection.close()


def kind_of(value: object) -> str:
    """The type of a value. The kinds of integers and of addresses are not told apart."""
    kinds = {bool: "BOOL", int: "INTEGER", str: "STRING", bytes: "BINARY"}
    return next((name for kind, name in kinds.items() if isinstance(value, kind)), "ADDRESS")


if __name__ == "__main__":
    main()
