"""The site as a browser shows it, wide and narrow, in both themes: nothing is cut.

`make docs` builds it and names it in ``SPOP_TEST_SITE``. With ``SPOP_TEST_SITE_PICTURES``, a folder,
each page is kept there as a picture.
"""

from __future__ import annotations

import base64
import functools
import http.server
import itertools
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Page, browser
from haproxy import wait_until

SITE = os.environ.get("SPOP_TEST_SITE", "")
PICTURES = os.environ.get("SPOP_TEST_SITE_PICTURES", "")
pytestmark = pytest.mark.skipif(not SITE, reason="`make docs` looks at the site that it builds")

CUT = """[...document.querySelectorAll("article :is(table, td, th, p, li, h1, h2, h3, img)")].filter(each =>
  each.clientWidth && each.scrollWidth > each.clientWidth + ("P LI".includes(each.tagName) ? 12 : 1)
  || each.getBoundingClientRect().right > innerWidth).map(each => each.textContent.slice(0, 60))"""
"""Texts that are wider than their place, or reach out of the window. The padding of code at the end of a line
may reach a little out of its paragraph."""
ESCAPED = """[...document.querySelectorAll("article td code")].map(each => each.textContent).filter(
  text => text.includes("\\\\|"))"""
"""Code of tables whose escapes are shown."""
DARK = "document.body.dataset.mdColorScheme == 'slate'"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    handler = functools.partial(Quiet, directory=SITE)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as it:
        yield it


def pages() -> list[str]:
    found = Path(SITE or "nowhere").rglob("index.html")
    return sorted(str(path.parent.relative_to(SITE)) for path in found)


@pytest.mark.parametrize("name", pages())
def test_nothing_of_a_page_is_cut(page: Page, address: str, name: str) -> None:
    load(page, f"{address}/{name}/")
    assert page.value("document.querySelectorAll('article h1').length") == 1
    themes = ("light", "dark") if PICTURES else ("light",)
    for width, theme in itertools.product((420, 1400), themes):
        page.look(width, theme)
        assert page.value(CUT) == [], width
        assert page.value(ESCAPED) == []
        keep(page, f"{name.replace('/', '-')}-{width}-{theme}")


def test_the_themes_differ(page: Page, address: str) -> None:
    load(page, f"{address}/")
    for theme in ("light", "dark"):
        page.look(1400, theme)
        wait_until(lambda: page.value(DARK) == (theme == "dark"), theme)  # noqa: B023


def load(page: Page, url: str) -> None:
    page.show(url, 420, "light")
    done = f"location.href == '{url}'.replace('/./', '/') && document.readyState == 'complete'"
    wait_until(lambda: bool(page.value(done)), url)


def keep(page: Page, name: str) -> None:
    if PICTURES:
        shot = page.call("Page.captureScreenshot", captureBeyondViewport=False)
        Path(PICTURES, f"{name}.png").write_bytes(base64.b64decode(shot["data"]))
