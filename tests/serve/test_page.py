"""The status page: self-contained, allowed by its own policy, and rendered by a real browser where there is one."""

import base64
import hashlib
import re
import shutil
import subprocess
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest

from .conftest import Running

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
STATUS = {
    "records_trained": 1200,
    "steps": 120,
    "task": "1",
    "tasks": ["0", "1", "<b>2</b>"],
    "classes": [0, 1, 2],
    "accuracy": {"prequential": 0.876, "holdout": 0.75, "forgetting": None, "per_task": {"0": 0.5, "1": 1.0}},
    "teachers": [{"name": "ema", "kind": "live", "worth": 0.2, "weight": 0.4, "classes": 3, "bytes": 2048}],
    "gate": {"hard": 0.6, "weights": {"ema": 0.4}, "adaptations": 7, "adaptation_seconds": 0.01},
    "boundaries": [{"record": 0, "detector": "new-label", "task": "0"}],
    "samples_per_second": 49.5,
    "loss": float("nan"),
    "history": [
        {
            "record": 100 * i,
            "prequential": 0.8,
            "holdout": None,
            "forgetting": 0.1,
            "hard": 0.6,
            "weights": {"ema": 0.4},
        }
        for i in range(1, 12)
    ],
}


def text() -> str:
    return files("streamkd.serve").joinpath("page.html").read_text("utf-8")


def test_nothing_comes_from_elsewhere() -> None:
    """The page names no other host, script file, style sheet or font."""
    without_namespaces = re.sub(r"http://www\.w3\.org/2000/svg", "", text())
    assert not re.search(
        r"https?://|//[a-z]+\.|<script [^>]*src|<link [^>]*stylesheet|@import|url\(", without_namespaces
    )


def test_the_policy_allows_the_pages_own_script_and_style_only(shared: Running) -> None:
    """The policy's hashes are those of the script and the style that are served; inline attributes are not allowed."""
    reply = shared.client.get("/")
    policy = reply.headers["Content-Security-Policy"]
    for tag in ("script", "style"):
        (block,) = re.findall(rf"<{tag}>(.*?)</{tag}>", reply.text, re.S)
        assert f"{tag}-src 'sha256-{base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()}'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<[a-z][^>]* (style|on[a-z]+)=", reply.text)


def test_every_element_is_closed_and_every_id_is_there() -> None:
    """The page is well formed, and the script asks for no element that is not in it."""
    open_tags: list[str] = []
    ids: list[str] = []

    class Check(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            ids.extend(value or "" for name, value in attrs if name == "id")
            if tag not in ("meta", "link", "input"):
                open_tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    Check().feed(text())
    assert open_tags == []
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'\$\("([a-z-]+)"\)', text())) <= set(ids)


def render(url: str, profile: Path) -> tuple[str, str]:
    assert BROWSER
    shown = subprocess.run(
        [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
            *(
                "--enable-logging=stderr",
                "--v=0",
                f"--user-data-dir={profile}",
                "--virtual-time-budget=2500",
                "--dump-dom",
                url + "/",
            ),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    return shown.stdout, "\n".join(line for line in shown.stderr.splitlines() if "CONSOLE" in line)


@pytest.mark.skipif(BROWSER is None, reason="no chromium to open the page with")
def test_a_browser_shows_the_status(running: Running, tmp_path: Path) -> None:
    """Opened in a browser, the page shows numbers, chart and teachers, and nothing is said on its console."""
    running.services.board.tell(STATUS)
    page, console = render(running.url, tmp_path)
    assert console == ""
    for shown in ("87.6 %", "75.0 %", "1,200", "49.5", "7 adaptations of the gate", "2 KiB", "ema", 'class="line"'):
        assert shown in page, shown
    assert "&lt;b&gt;2&lt;/b&gt;" in page


@pytest.mark.skipif(BROWSER is None, reason="no chromium to open the page with")
def test_a_browser_shows_the_page_before_the_first_status(running: Running, tmp_path: Path) -> None:
    """With nothing known of the learner yet, the page says so instead of breaking."""
    page, console = render(running.url, tmp_path)
    assert console == ""
    assert "The pool fills when the first record is trained." in page
