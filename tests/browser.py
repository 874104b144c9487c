"""A page in a headless Chromium, for the tests."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from haproxy import wait_until
from websockets.sync.client import ClientConnection, connect

_OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-quic",
    "--remote-debugging-port=0",
)  # fmt: skip


class Page:
    """A page, which is asked by Chromium's DevTools protocol."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._ids = itertools.count()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol."""
        number = next(self._ids)
        self._connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        for text in self._connection:
            answer = json.loads(text)
            if answer.get("id") == number:
                return dict(answer["result"])
        raise AssertionError("the browser is gone")

    def value(self, expression: str) -> Any:
        """The value of an expression of JavaScript."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return found["result"].get("value")

    def show(self, url: str, width: int, scheme: str) -> None:
        """Load a URL at a width in px, in the "light" or "dark" theme."""
        self.look(width, scheme)
        self.call("Page.navigate", url=url)

    def look(self, width: int, scheme: str) -> None:
        """Have a width in px, and the "light" or "dark" theme."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=900, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        theme = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[theme])


@contextlib.contextmanager
def browser(directory: Path) -> Iterator[Page]:
    """A browser with its files in a directory; the test is skipped if there is none."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium is installed")
    process = subprocess.Popen(
        [found, *_OPTIONS, f"--user-data-dir={directory}", "about:blank"],
        stderr=subprocess.DEVNULL,
    )
    try:
        ports = directory / "DevToolsActivePort"
        wait_until(lambda: ports.exists() and ports.read_text().count("\n") > 0, "the browser")
        base = f"http://127.0.0.1:{ports.read_text().split()[0]}/json"
        pages: list[dict[str, str]] = []

        def has_page() -> bool:
            with urllib.request.urlopen(base, timeout=10) as answer:
                pages[:] = [each for each in json.load(answer) if each["type"] == "page"]
            return bool(pages)

        wait_until(has_page, "the page")
        with connect(pages[0]["webSocketDebuggerUrl"], max_size=None) as connection:
            yield Page(connection)
    finally:
        process.kill()
        process.wait()
