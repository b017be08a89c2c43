"""Serves a gallery to this machine only; its files are made when they are asked for. It may be one that edits."""

from __future__ import annotations

import hmac
import json
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from patchmint.errors import InputError, PatchmintError
from patchmint.inspection.gallery.editing import Editing
from patchmint.inspection.gallery.site import Site

_HOST = "127.0.0.1"
_TYPES = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "jpg": "image/jpeg",
    "png": "image/png",
    "svg": "image/svg+xml",
}
_IDLE_S = 60
_MAX_REQUEST = 1 << 24
# An edit that is done again brings its masks.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Another gallery may be served at this address next.
    "Cache-Control": "no-store",
}


class GalleryServer(ThreadingHTTPServer):
    """A server of one gallery on 127.0.0.1. `serve_forever` runs it, `server_close` gives the port back."""

    daemon_threads = True

    def __init__(self, site: Site, port: int = 0, editing: Editing | None = None) -> None:
        """Take a port.

        Args:
            site: what is served.
            port: 0 = any that is free.
            editing: answers requests that change something; None: there are none.

        Raises:
            InputError: the port is taken.
        """
        self.site = site
        self.editing = editing
        try:
            super().__init__((_HOST, port), _Handler)
        except OSError as error:
            raise InputError(f"can't serve on port {port}: {error.strerror or error}; give another --port") from error

    @property
    def url(self) -> str:
        """Where the gallery is. What stands after # never leaves the browser, and allows its page to edit."""
        token = f"#token={self.editing.token}" if self.editing is not None else ""
        return f"http://{_HOST}:{self.server_port}/{token}"

    @property
    def hosts(self) -> set[str]:
        """How this machine's browsers call the server."""
        return {f"{name}:{self.server_port}" for name in (_HOST, "localhost")}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "patchmint"
    sys_version = ""
    timeout = _IDLE_S
    server: GalleryServer

    def do_GET(self) -> None:
        """Answer with a file."""
        self._answer(*self._found())

    def do_HEAD(self) -> None:
        """Answer as to GET, without the file."""
        self._answer(*self._found())

    def do_POST(self) -> None:
        """Answer a request to change something."""
        status, said = self._changed()
        self.close_connection |= status != HTTPStatus.OK  # its body may not have been read
        self._answer(status, "application/json", json.dumps(said).encode())

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""

    def _found(self) -> tuple[HTTPStatus, str, bytes]:
        # A page of another site whose name was turned to 127.0.0.1 still says its own name here (DNS rebinding).
        if self.headers.get("Host") not in self.server.hosts:
            return HTTPStatus.MISDIRECTED_REQUEST, "text/plain", b"this gallery is for this machine only\n"
        path = urlsplit(self.path).path.removeprefix("/") or "index.html"
        try:
            data = self.server.site.file(path)
        except PatchmintError as error:
            return HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", f"{error}\n".encode("utf-8", "replace")
        if data is None:
            return HTTPStatus.NOT_FOUND, "text/plain", b"there is no such file in this gallery\n"
        return HTTPStatus.OK, _TYPES[path.rpartition(".")[2]], data

    def _changed(self) -> tuple[HTTPStatus, dict[str, Any]]:
        editing, length = self.server.editing, self.headers.get("Content-Length", "")
        if editing is None or self.path != "/edit":
            return HTTPStatus.NOT_IMPLEMENTED, {"error": "there is nothing to change at this address"}
        # A browser tells the origin of every such request, and other pages can't know the token.
        host, token = self.headers.get("Host"), self.headers.get("X-Patchmint-Token", "")
        if host not in self.server.hosts or self.headers.get("Origin") != f"http://{host}":
            return HTTPStatus.FORBIDDEN, {"error": "only the gallery's own page may edit"}
        if not hmac.compare_digest(token.encode(), editing.token.encode()):
            return HTTPStatus.FORBIDDEN, {"error": "open the address that the terminal shows: only that page may edit"}
        if not (length.isascii() and length.isdecimal() and int(length) <= _MAX_REQUEST):
            return HTTPStatus.BAD_REQUEST, {"error": f"a request has {_MAX_REQUEST:,} bytes at most"}
        try:
            return HTTPStatus.OK, editing.answer(self.rfile.read(int(length)))
        except InputError as error:
            return HTTPStatus.BAD_REQUEST, {"error": str(error)}
        except PatchmintError as error:
            return HTTPStatus.INTERNAL_SERVER_ERROR, {"error": str(error)}

    def _answer(self, status: HTTPStatus, kind: str, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind if kind.startswith("image/") else f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        requests = "; connect-src 'self'" if self.server.editing is not None else ""
        for name, value in {"Content-Security-Policy": _POLICY + requests, **_HEADERS}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
