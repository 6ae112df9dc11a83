"""The page's files: a few, that lie beside this module, read when they are first asked for."""

from __future__ import annotations

from hashlib import blake2b
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

from router.errors import NoSuchPath

INDEX = "index.html"
_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
_FILES = (
    INDEX, "page.css", "page.js", "charts.js", "decisions.js", "fleet.js", "format.js", "tables.js", "theme.js",
    "icon.svg",
    "uplot/uPlot.iife.min.js", "uplot/uPlot.min.css",
)  # fmt: skip
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
"""The page's Content-Security-Policy: nothing from elsewhere, and nothing that stands in the page's own text."""
GUARDED = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
"""Headers of all that the page is made of."""


class PageFiles:
    """What each is, and how it is answered."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[bytes, str]] = {}

    def answer(self, name: str, request: Request) -> Response:
        """The file, or that it is as the browser has it. Raises `NoSuchPath`."""
        if name not in _FILES:
            raise NoSuchPath(f"There is no {request.url.path[:200]} here.")
        body, tag = self._read(name)
        headers = {**GUARDED, "etag": tag, "cache-control": "no-cache"}  # asked for anew: it belongs to this version
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(body, headers=headers, media_type=_TYPES[name.rpartition(".")[2]])

    def _read(self, name: str) -> tuple[bytes, str]:
        known = self._known.get(name)
        if known is None:
            body = files("router.page").joinpath("static", *name.split("/")).read_bytes()
            known = self._known[name] = body, f'"{blake2b(body, digest_size=12).hexdigest()}"'
        return known
