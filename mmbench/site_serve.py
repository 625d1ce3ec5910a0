"""What `view` does: pages on the loopback interface, readable from this machine, from one folder, in no other way."""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from mmbench.errors import ConfigError

HOST = "127.0.0.1"
FRONT, STYLE = "index.html", Path("static") / "site.css"


def view(folder: Path, port: int, samples: bool) -> None:
    """Serve a site, or build that of a results folder for the time being, until Ctrl-C."""
    if is_site(folder):
        serve(folder, port)
        return
    from mmbench.site_verb import write  # seconds of imports that a finished site does not need

    with tempfile.TemporaryDirectory(prefix="mmbench-site-") as scratch:
        write(folder, Path(scratch) / "site", samples)
        serve(Path(scratch) / "site", port)


def is_site(folder: Path) -> bool:
    return (folder / FRONT).is_file() and (folder / STYLE).is_file()


class Handler(SimpleHTTPRequestHandler):
    """Files below one folder; no listings, and no links that lead out of it."""

    server: ThreadingHTTPServer

    def send_head(self) -> BytesIO | BinaryIO | None:
        if self.headers.get("Host", "") not in allowed_hosts(self.server):
            # Another site's page could otherwise read this one under a name of its own that leads here.
            self.send_error(HTTPStatus.FORBIDDEN, "served under 127.0.0.1 and localhost alone")
            return None
        if not self._is_inside():
            self.send_error(HTTPStatus.NOT_FOUND)
            return None
        return super().send_head()

    def _is_inside(self) -> bool:
        """Whether the wanted file lies below the folder, links resolved."""
        try:
            wanted = Path(self.translate_path(self.path)).resolve()
        except ValueError:  # a null byte
            return False
        return wanted.is_relative_to(Path(self.directory).resolve())

    def list_directory(self, path: object) -> None:
        self.send_error(HTTPStatus.NOT_FOUND)

    def end_headers(self) -> None:
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """The terminal shows the address alone."""


def allowed_hosts(server: ThreadingHTTPServer) -> tuple[str, ...]:
    port = server.server_address[1]
    return (f"{HOST}:{port}", f"localhost:{port}")


def server_of(folder: Path, port: int) -> ThreadingHTTPServer:
    """A server that is bound but not yet running; port 0 takes a free one. Raises ConfigError if it cannot be had."""
    try:
        return ThreadingHTTPServer((HOST, port), partial(Handler, directory=str(folder)))
    except (OSError, OverflowError) as error:
        raise ConfigError(f"cannot listen on {HOST}:{port}: {error}; choose another with --port") from None


def serve(folder: Path, port: int) -> None:
    """Serve until Ctrl-C."""
    with server_of(folder, port) as server:
        print(f"http://{HOST}:{server.server_address[1]}/ (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("ended", file=sys.stderr)
