"""The report in a real browser: it looks right on a phone and on paper, and asks for nothing."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
from html import unescape
from typing import TYPE_CHECKING, Any

import pytest

from helpers_audits import CERTIFICATE, make_access_record, make_audit, make_source
from sordino.reports.audit_page import PageSource, render_audit_page
from sordino.reports.report import publishable_part

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--virtual-time-budget=3000",
    "--host-resolver-rules=MAP * ~NOTFOUND",  # nothing is reached from here
)
POLICY = re.compile(r"<meta http-equiv[^>]*>")
MEASURE = """<script>
const wide = [...document.querySelectorAll("body *")].filter(e => {
  const box = e.getBoundingClientRect(), style = getComputedStyle(e);
  return box.width && style.position !== "absolute" && !e.closest("svg")
    && (box.right > innerWidth + 0.5 || box.left < -0.5);
});
const small = [...document.querySelectorAll("svg text")].filter(
  e => {
    const scale = e.getScreenCTM(), size = parseFloat(getComputedStyle(e).fontSize);
    return e.getBoundingClientRect().height && size * Math.hypot(scale.a, scale.b) < 9;
  });
const cut = [...document.querySelectorAll("svg text")].filter(e => {
  const box = e.getBoundingClientRect(), frame = e.closest("svg").getBoundingClientRect();
  return box.width && (box.right > frame.right + 1 || box.left < frame.left - 1);
});
const what = {width: innerWidth, scroll: document.documentElement.scrollWidth,
  wide: wide.map(e => e.outerHTML.slice(0, 80)), small: small.map(e => e.textContent),
  cut: cut.map(e => e.textContent)};
parent.postMessage(JSON.stringify(what), "*");
</script></body>"""
COLLECT = """<script>
onmessage = e => { document.title += (document.title ? "," : "") + e.data };
</script>"""


class Browser:
    """Chromium without a window."""

    def __init__(self, binary: str, folder: Path) -> None:
        self.binary, self.folder = binary, folder

    def run(self, page: Path, *flags: str) -> subprocess.CompletedProcess[str]:
        """Opens a page and returns what was printed."""
        done = subprocess.run(
            [self.binary, *FLAGS, f"--user-data-dir={self.folder}", *flags, page.as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done

    def measure(self, page: Path, widths: Sequence[int]) -> list[dict[str, Any]]:
        """Returns what a script inside a copy of the page finds at each width.

        The copy lies in frames: a window cannot be made as narrow as a phone.
        """
        html = POLICY.sub("", page.read_text(encoding="utf-8"))
        assert "http-equiv" not in html
        page.with_name("copy.html").write_text(html.replace("</body>", MEASURE), encoding="utf-8")
        frames = "".join(
            f'<iframe src="copy.html" style="border:0;width:{width}px;height:800px"></iframe>'
            for width in widths
        )
        outer = page.with_name("frames.html")
        outer.write_text(f"<title></title>{COLLECT}{frames}", encoding="utf-8")
        done = self.run(outer, "--dump-dom", "--window-size=1400,900")
        found = re.search(r"<title>(.*?)</title>", done.stdout)
        assert found, done.stdout[:500]
        measured = json.loads(f"[{unescape(found[1])}]")
        assert len(measured) == len(widths)
        return sorted(measured, key=lambda each: each["width"])


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    binary = next((path for path in map(shutil.which, NAMES) if path), None)
    if binary is None:
        pytest.skip("no Chromium on this machine")
    return Browser(binary, tmp_path_factory.mktemp("chromium"))


SOURCES = {
    "full": make_source(audit=make_audit("contradicted", "no power"), access=make_access_record()),
    "public": make_source(audit=publishable_part(make_audit()), holder_report=None, is_public=True),
    "bare": PageSource(name="run", audit=None, certificate_in_words=CERTIFICATE),
}


@pytest.fixture
def page(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    path.write_text(render_audit_page(SOURCES[request.param]), encoding="utf-8")
    return path


def size_of(png: Path) -> tuple[int, int]:
    """Returns width and height of a picture."""
    content = png.read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", content[16:24])
    return width, height


@pytest.mark.parametrize("size", [(390, 844), (1280, 900)])
@pytest.mark.parametrize("page", ["full"], indirect=True)
def test_it_is_drawn(browser: Browser, page: Path, size: tuple[int, int]) -> None:
    """On a phone and on a desktop; the picture is not empty, and the console has no errors."""
    picture = page.with_name("page.png")
    width, height = size
    done = browser.run(page, f"--window-size={width},{height}", f"--screenshot={picture}")
    assert size_of(picture) == size
    assert picture.stat().st_size > 20_000  # an empty page gives a few kilobytes
    assert "CONSOLE" not in done.stderr


@pytest.mark.parametrize("page", ["full"], indirect=True)
def test_the_console_is_watched(browser: Browser, page: Path) -> None:
    """Negative control: what the policy forbids is seen here."""
    html = page.read_text(encoding="utf-8")
    page.write_text(html.replace("</main>", "</main><script>1</script>"), encoding="utf-8")
    done = browser.run(page, f"--screenshot={page.with_name('page.png')}")
    assert "CONSOLE" in done.stderr
    assert "Content Security Policy" in done.stderr


def requests_of(browser: Browser, page: Path) -> list[str]:
    """Returns the addresses that a page made the browser ask for.

    The browser asks for things of its own, which have no page as their origin.
    """
    log = page.with_name("net.json")
    browser.run(page, f"--log-net-log={log}", f"--screenshot={page.with_name('page.png')}")
    events = json.loads(log.read_text(encoding="utf-8"))["events"]
    asked = [event.get("params", {}) for event in events]
    return sorted(
        {
            found["url"]
            for found in asked
            if found.get("url") and found.get("initiator", "not an origin") != "not an origin"
        }
    )


@pytest.mark.parametrize("page", ["full"], indirect=True)
def test_it_asks_for_nothing(browser: Browser, page: Path) -> None:
    """No request leaves the page."""
    assert requests_of(browser, page) == []


@pytest.mark.parametrize("page", ["full"], indirect=True)
def test_requests_are_watched(browser: Browser, page: Path) -> None:
    """Negative control: without the policy, a picture from elsewhere is seen here."""
    html = POLICY.sub("", page.read_text(encoding="utf-8"))
    picture = '<img src="http://sordino.invalid/x.png">'
    page.write_text(html.replace("</main>", f"</main>{picture}"), encoding="utf-8")
    assert requests_of(browser, page) == ["http://sordino.invalid/x.png"]


@pytest.mark.parametrize("page", list(SOURCES), indirect=True)
def test_nothing_is_wider_than_the_screen(browser: Browser, page: Path) -> None:
    """No sideways scrolling, no words outside a figure, none too small to read."""
    widths = [360, 760, 1280]
    assert browser.measure(page, widths) == [
        {"width": width, "scroll": width, "wide": [], "small": [], "cut": []} for width in widths
    ]


@pytest.mark.parametrize("page", ["full"], indirect=True)
def test_width_is_watched(browser: Browser, page: Path) -> None:
    """Negative control: a word that cannot be broken is found."""
    html = page.read_text(encoding="utf-8")
    wide = '<span style="white-space: nowrap">' + 200 * "wide" + "</span></main>"
    page.write_text(html.replace("</main>", wide), encoding="utf-8")
    (found,) = browser.measure(page, [360])
    assert found["wide"]
    assert found["scroll"] != 360


@pytest.mark.parametrize("page", ["full", "bare"], indirect=True)
def test_it_prints(browser: Browser, page: Path) -> None:
    """On A4, in a few pages."""
    paper = page.with_name("page.pdf")
    browser.run(page, f"--print-to-pdf={paper}", "--no-pdf-header-footer")
    content = paper.read_bytes()
    boxes = re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", content)
    assert 1 <= len(boxes) <= 9
    for width, height in boxes:
        assert (float(width), float(height)) == pytest.approx((595.0, 842.0), abs=1.0)
