"""The status page: self-contained, allowed by its own policy, and rendered by a real browser where there is one."""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamkd.evaluate.measures import Measures

from ..conftest import Running

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def measured(names: list[str], share: list[float]) -> dict[str, Any]:
    """Measures of 2,000 records with labels of these shares, of which a third of each class is answered as the next."""
    labels = np.repeat(np.arange(len(names)), [round(2_000 * part) for part in share])
    rows = np.eye(len(names))[np.where(np.arange(len(labels)) % 3, labels, (labels + 1) % len(names))]
    order = np.random.default_rng(0).permutation(len(labels))
    found = Measures()
    found.add(labels[order], rows[order].argmax(1), rows[order])
    return found.figures(names)


STATUS: dict[str, Any] = {
    "records_trained": 1200,
    "steps": 120,
    "task": "1",
    "tasks": ["0", "1", "<b>2</b>"],
    "classes": [0, 1, 2],
    "accuracy": {
        "served": 0.876,
        "served_version": 1,
        "student": 0.654,
        "holdout": 0.75,
        "forgetting": None,
        "per_task": {"0": 0.5, "1": 1.0},
    },
    "measures": measured(["plain", "<i>rare</i>"], [0.99, 0.01]),
    "repeats": {"records": 1100, "share": 0.9, "told_apart": True, "pass": 12},
    "teachers": [{"name": "ema", "kind": "live", "marginal_gain": 0.2, "weight": 0.4, "classes": 3, "bytes": 2048}],
    "gate": {"hard": 0.6, "weights": {"ema": 0.4}, "adaptations": 7, "adaptation_seconds": 0.01},
    "boundaries": [
        {"record": 0, "detector": "new-label", "task": "0"},
        {"record": 700, "detector": "adwin", "task": "1"},
    ],
    "samples_per_second": 49.5,
    "loss": float("nan"),
    "history": [
        {
            "record": 100 * i,
            "served": 0.9,
            "prequential": 0.8,
            "holdout": None,
            "forgetting": 0.1,
            "hard": 0.6,
            "weights": {"ema": 0.4},
        }
        for i in range(1, 12)
    ],
}
MAJORITY = STATUS["measures"]["newest"]["majority"]["share"]


def text() -> str:
    return files("streamkd.serve.http").joinpath("page.html").read_text("utf-8")


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


def render(url: str, profile: Path, *more: str) -> tuple[str, str]:
    assert BROWSER
    shown = subprocess.run(
        [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
            *(
                "--enable-logging=stderr",
                "--v=0",
                f"--user-data-dir={profile}",
                "--virtual-time-budget=2500",
                *more,
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
    running.services.status.tell(STATUS)
    page, console = render(running.url, tmp_path)
    assert console == ""
    for shown in (
        "87.6 %",
        "65.4 %",
        "75.0 %",
        "pass 12",
        "Student",
        "1,200",
        "49.5",
        "7 adaptations of the gate",
        "adwin saw a change at record 700",
        "2 KiB",
        "ema",
        'class="line"',
        *(
            "Answers by class",
            "Balanced accuracy",
            "ROC AUC",
            "Kappa M",
            f"always “plain” would be {100 * MAJORITY:.1f} %",
        ),
        "&lt;i&gt;rare&lt;/i&gt;",
        "plain answered as &lt;i&gt;rare&lt;/i&gt;: ",
    ):
        assert shown in page, shown
    assert "&lt;b&gt;2&lt;/b&gt;" in page


@pytest.mark.skipif(BROWSER is None, reason="no chromium to open the page with")
def test_a_browser_shows_the_page_before_the_first_status(running: Running, tmp_path: Path) -> None:
    """With nothing known of the learner yet, the page says so instead of breaking."""
    page, console = render(running.url, tmp_path)
    assert console == ""
    assert "The pool fills when the first record is trained." in page
    assert re.search(r'id="answers" hidden=""', page)


def much() -> dict[str, Any]:
    """A status after 50,000 records: sixty tasks and a dozen teachers with long names, a rollback that is pinned."""
    tasks = [f"task {i} of a customer with a long name" for i in range(60)]
    keys = [f"checkpoint-of-a-network-with-a-rather-long-name-{i}" for i in range(12)]
    weights = dict.fromkeys(keys, 0.05)
    point = {"served": 0.9, "prequential": 0.8, "holdout": 0.85, "forgetting": 0.1, "hard": 0.4, "weights": weights}
    figures = {"served": 0.934, "served_version": 988, "student": 0.877, "holdout": 0.81, "forgetting": 0.05}
    return {
        "records_trained": 50_000,
        "task": tasks[59],
        "tasks": tasks,
        "classes": list(range(120)),
        "accuracy": {**figures, "per_task": dict.fromkeys(tasks[:59], 0.5)},
        "measures": measured([f"a class with a long name of its own, {i}" for i in range(120)], [1 / 120] * 120),
        "repeats": {"records": 46_000, "share": 0.98, "told_apart": True, "pass": 12},
        "teachers": [
            {
                "name": key,
                "kind": "checkpoint",
                "marginal_gain": 0.02,
                "accuracy": 0.8,
                "classes": 120,
                "bytes": 1 << 27,
            }
            for key in keys
        ],
        "gate": {"hard": 0.4, "weights": weights, "adaptations": 5000, "adaptation_seconds": 0.01, "label_noise": 0.12},
        "boundaries": [
            {"record": 286 * i, "detector": "new-label", "task": tasks[i % 60]} for i in range(75, 175)
        ],  # of which the first quarter of the stream is not told any more
        "samples_per_second": 1234.5,
        "batch": {"records": 160, "pace": "auto"},
        "lag_records": 1_234_567,
        "history": [{"record": 210 * i, **point} for i in range(1, 239)],
        "server": {
            "name": "a stream with a rather long name of its own",
            "source": "replay",
            "ready": True,
            "version": 1023,
            "pinned": {"version": 1023, "source_version": 988, "newest": 1024},
            "published_timestamp_seconds": 1e9,
            "started_timestamp_seconds": 1e9,
            "timestamp_seconds": 1e9 + 5,
            "dead_letters": 1_234_567,
            "refused": {"too_many_labels": 1_200_000, "decode": 34_000, "missing_input": 500, "wrong_shape": 67},
        },
    }


MEASURE = """<script>setTimeout(() => {
  const over = (e) => e.clientWidth > 0 && e.scrollWidth > e.clientWidth && !e.closest("svg");
  const name = (e) => e.tagName + "#" + e.id + "." + e.className + " " + e.textContent.slice(0, 40);
  const svg = document.getElementById("tracks").getBoundingClientRect();
  const box = (e) => e.getBoundingClientRect();
  const own = (e) => box(e.closest("svg"));
  const out = (e) => box(e).left < own(e).left - 1 || box(e).right > own(e).right + 1;
  const strip = [...document.querySelectorAll("svg rect.task")].map((e) => e.getBoundingClientRect());
  const low = Math.min(...strip.map((box) => box.left)), high = Math.max(...strip.map((box) => box.right));
  const said = {
    width: innerWidth,
    page: document.documentElement.scrollWidth,
    clipped: [...document.querySelectorAll("body, body *")].filter(over).map(name),
    outside: [...document.querySelectorAll("svg text")].filter(out).map((e) => e.textContent),
    strip: (high - low) / svg.width, painted: strip.reduce((sum, box) => sum + box.width, 0) / (high - low),
    bands: document.querySelectorAll("svg path:not(.line)").length,
    teachers: document.querySelectorAll("#teachers tbody tr").length,
    tasks: document.querySelectorAll("#tasks li").length,
    classes: document.querySelectorAll("#classes tbody tr").length,
    cells: document.querySelectorAll("#confusion rect").length,
  };
  parent.document.body.replaceChildren(JSON.stringify(said));
}, 1500)</script>"""


@contextmanager
def offered(status: dict[str, Any]) -> Iterator[str]:
    """The page over a status of one's own; ``/framed?WIDTH`` is the page of that width, which measures itself."""

    def answer(path: str) -> str:
        if path.startswith("/framed"):
            return f'<iframe src="/measured" width="{path.partition("?")[2].rstrip("/")}" height="900" frameborder="0">'
        if path == "/v1/status":
            return json.dumps(status)
        return text() + (MEASURE if path == "/measured" else "")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = answer(self.path).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json" if self.path == "/v1/status" else "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.skipif(BROWSER is None, reason="no chromium to open the page with")
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_clipped_or_blank_after_50_000_records(width: int, tmp_path: Path) -> None:
    """At both widths no element is wider than its place, the strip of tasks is painted whole, all rows are there."""
    with offered(much()) as url:
        page, _ = render(f"{url}/framed?{width}", tmp_path, "--window-size=1400,900")
    said = json.loads(html.unescape(re.findall(r"<body>(.*?)</body>", page, re.S)[0]))
    assert said["width"] == width
    assert said["page"] <= width
    assert said["clipped"] == []
    assert said["outside"] == []
    assert said["strip"] > 0.7
    assert said["painted"] > 0.98
    assert said["bands"] >= 13
    assert (said["teachers"], said["tasks"], said["classes"], said["cells"]) == (13, 60, 10, 110)


@pytest.mark.skipif(BROWSER is None, reason="no chromium to open the page with")
def test_a_browser_is_told_of_a_pin_and_of_what_has_no_figure(tmp_path: Path) -> None:
    """A pinned rollback says what it is of and what is newer; the version scored is named; a new task is "–"."""
    with offered(much()) as url:
        page, _ = render(url, tmp_path, "--virtual-time-budget=1000")
    for shown in ("Version, pinned", "version 988 again; newest is 1024", "of version 988"):
        assert shown in page, shown
    last = re.findall(r"<li.*?</li>", page)[-1]
    assert "task 59" in last
    assert "–" in last
    assert "%" not in last
