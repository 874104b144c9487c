"""HAProxy's verdicts on many one-line SPOE files, with few starts of HAProxy.

Each file is that of a filter of its own, in a frontend of its own. HAProxy reports all files that
it refuses while it reads them, but stops at the first that it refuses later, and some of its checks
write into each other's memory. So what is refused is taken out, and the rest judged again; and
`alone` judges a file without the others.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import haproxy

SPOE = """[test]
spoe-agent a
    use-backend agents
    messages m
    timeout processing 1s
spoe-message m
    {lines}
"""

_STORED = (
    "bytes_in_rate(1s),bytes_out_rate(1s),conn_cnt,conn_cur,conn_rate(1s),gpc0,gpc0_rate(1s),"
    "gpc1,gpc1_rate(1s),gpt0,http_err_cnt,http_err_rate(1s),http_req_cnt,http_req_rate(1s),"
    "server_id,sess_cnt,sess_rate(1s)"
)

_AROUND = """defaults
    mode http
    timeout connect 1s
    timeout client 1s
    timeout server 1s
userlist users
    user a insecure-password b
backend table
    stick-table type string size 10 store {stored}
backend agents
    mode {mode}
    server one 127.0.0.1:1
frontend first
"""

_FRONTEND = """frontend f{number}
    stick-table type string size 10 store {stored}
    filter spoe engine test config {folder}/f{number}.cfg
"""


class Judge:
    """Asks a HAProxy about messages, each the lines of a ``spoe-message`` section.

    Args:
        options: the section ``global``.
    """

    def __init__(self, binary: str, folder: Path, options: str = "") -> None:
        self._options = options
        self._binary = binary
        self._folder = folder
        version = haproxy.version(binary)
        self._stored = _STORED + (",http_fail_cnt" if version >= (2, 4) else "")
        self._mode = "spop" if version >= (3, 1) else "tcp"

    def refused(self, messages: Sequence[str]) -> set[int]:
        """The numbers of the messages that HAProxy refuses, of up to some thousand.

        It takes few starts of HAProxy where all are taken, or nearly all are refused.
        """
        for number, lines in enumerate(messages):
            (self._folder / f"f{number}.cfg").write_text(SPOE.format(lines=lines))
        return self._among(range(len(messages)))

    def alone(self, message: str) -> bool:
        """Whether HAProxy takes a message."""
        return not self.refused([message])

    def _among(self, numbers: Sequence[int]) -> set[int]:
        found: set[int] = set()
        while left := [number for number in numbers if number not in found]:
            status, named = self._start(left)
            named -= found
            found |= named
            if status in (0, 2):  # 2: a configuration without a listener.
                break
            if not named:  # Of some errors, HAProxy names no place; or it crashed.
                return found | {number for number in left if self._start([number])[0] not in (0, 2)}
        return found

    def _start(self, numbers: Sequence[int]) -> tuple[int, set[int]]:
        """The status of HAProxy, and the numbers that it names in errors."""
        config = self._folder / "haproxy.cfg"
        frontends = (
            _FRONTEND.format(number=n, folder=self._folder, stored=self._stored) for n in numbers
        )
        around = _AROUND.format(stored=self._stored, mode=self._mode)
        config.write_text(self._options + around + "".join(frontends))
        done = subprocess.run(
            [self._binary, "-c", "-f", str(config)], capture_output=True, check=False, timeout=300
        )
        named: set[int] = set()
        for line in done.stderr.decode("utf-8", "replace").splitlines():
            if "ALERT" in line:
                found = re.search(r"/f(\d+)\.cfg:|proxy '?f(\d+)'?\b", line)
                named.update(int(group) for group in found.groups() if group) if found else None
        return done.returncode, named
