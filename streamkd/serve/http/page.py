"""The status page at ``/``: one self-contained file that polls ``/v1/status``; nothing comes from elsewhere."""

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response


async def show(_request: Request) -> Response:
    """The page; its own script and style are the only ones that the browser may run."""
    text, policy = _page()
    return Response(text, 200, {"Content-Security-Policy": policy, "Cache-Control": "no-cache"}, "text/html")


@cache
def _page() -> tuple[bytes, str]:
    text = files("streamkd.serve.http").joinpath("page.html").read_text("utf-8")
    script, style = (_hash(re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S)) for tag in ("script", "style"))
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style};"
        " connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text.encode(), policy


def _hash(blocks: list[str]) -> str:
    digests = (base64.b64encode(hashlib.sha256(block.encode()).digest()).decode() for block in blocks)
    return " ".join(f"'sha256-{digest}'" for digest in digests)
