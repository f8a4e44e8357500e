"""What stands before Gradio's routes: who may ask, for what, and how much may be sent."""

import json
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.formparsers import MultiPartException
from starlette.responses import PlainTextResponse

from speechbrain_ser.serve.uploads import Uploads

API = "/gradio_api"
UPLOAD = f"{API}/upload"
# What the page and the API need. Gradio has more: proxies, downloads of URLs, stored links, editors.
READ = ("/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt")
READ += tuple(f"{API}/{name}" for name in ("info", "openapi.json", "app_id", "startup-events", "queue/data"))
READ += (f"{API}/upload_progress",)
READ_BELOW = ("/assets/", "/static/", f"{API}/heartbeat/", f"{API}/call/", f"{API}/file=")
WRITE = (UPLOAD, *(f"{API}/{name}" for name in ("queue/join", "cancel", "reset")))
WRITE_BELOW = (f"{API}/call/",)
BODY = 1 << 16  # bytes of a request that is no upload, and of what surrounds an upload
LOCAL = ("localhost", "127.0.0.1", "[::1]")
SECURITY = {
    # the browser itself keeps the page from asking anybody else for anything
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; "
    "base-uri 'self'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}


class Guard:
    """ASGI middleware.

    Arguments
    ---------
    app : callable
        The ASGI application behind it.
    uploads : Uploads
        Where uploads go, and how large one may be.
    is_local : bool
        Whether only this machine is served: then a request must name it (against DNS rebinding).
    """

    def __init__(self, app, uploads: Uploads, is_local: bool):
        self.app, self.uploads, self.is_local = app, uploads, is_local

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        if refusal := self._refusal(scope["method"], scope["path"], Headers(scope=scope)):
            status, words = refusal
            await PlainTextResponse(words + "\n", status)(scope, receive, _with_headers(send))
        elif scope["path"] == UPLOAD:
            await self.app(scope, self._bounded(receive), self._noting(_with_headers(send)))
        else:
            await self.app(scope, receive, _with_headers(send))

    def _refusal(self, method: str, path: str, headers: Headers) -> tuple[int, str] | None:
        """Status and words, where a request is not let through."""
        host = headers.get("host", "")
        if self.is_local and _name(host) not in LOCAL:
            return 403, f"expected a request to {' or '.join(LOCAL)}, found one to {host!r}"
        if "origin" in headers and headers["origin"].partition("://")[2] != host:
            return 403, f"expected a request of this page, found one of {headers['origin']!r}"
        if not _is_known(method, path):
            return 404, "not found"
        if method != "POST":
            return None
        most = BODY + (self.uploads.max_bytes if path == UPLOAD else 0)
        length = headers.get("content-length")
        if path != UPLOAD and length is None:
            return 411, "expected a request with its length"
        if length is not None and not (length.isdecimal() and int(length) <= most):
            return 413, self._too_large() if path == UPLOAD else f"expected at most {most} bytes"
        if path == UPLOAD and self.uploads.is_full():
            return 503, "too many recordings are waiting: try again in a minute"
        return None

    def _too_large(self) -> str:
        return f"the recording exceeds the maximum allowed size of {self.uploads.max_bytes / 2**20:g} MB"

    def _bounded(self, receive):
        """An upload's bytes, counted as they come; Gradio deletes the rest of one whose parser is told of an error."""
        so_far = 0

        async def bounded():
            nonlocal so_far
            message = await receive()
            so_far += len(message.get("body", b""))
            if so_far > self.uploads.max_bytes + BODY:
                raise MultiPartException(self._too_large())
            if message["type"] == "http.disconnect":
                raise MultiPartException("the upload was broken off")
            return message

        return bounded

    def _noting(self, send):
        """Tells the uploads' folder what has come."""
        status, body = 0, b""

        async def noting(message):
            nonlocal status, body
            status = message.get("status", status)
            body += message.get("body", b"")
            if message["type"] == "http.response.body" and not message.get("more_body") and status == 200:
                self.uploads.received(json.loads(body))
            await send(message)

        return noting


def _is_known(method: str, path: str) -> bool:
    if method in ("GET", "HEAD"):
        return path == "/" or path in READ or _is_below(path, READ_BELOW)
    return method == "POST" and (path in WRITE or _is_below(path, WRITE_BELOW))


def _is_below(path: str, prefixes: Iterable[str]) -> bool:
    """Whether a path begins so, and names nothing elsewhere (an address, a network share)."""
    return any(path.startswith(p) and "://" not in path and "//" not in path for p in prefixes)


def _name(host: str) -> str:
    """A Host header without its port.

    Example
    -------
    >>> _name("localhost:7860"), _name("[::1]:7860"), _name("127.0.0.1")
    ('localhost', '[::1]', '127.0.0.1')
    """
    return (host[: host.index("]") + 1] if "]" in host else host.partition(":")[0]).lower()


def _with_headers(send):
    async def sending(message):
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(SECURITY)
        await send(message)

    return sending
