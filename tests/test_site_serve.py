"""The server of `view`: this machine alone, one folder alone."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from mmbench.errors import ConfigError
from mmbench.site_serve import is_site, server_of


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    (folder / "static").mkdir(parents=True)
    (folder / "index.html").write_text("front", encoding="utf-8")
    (folder / "static" / "site.css").write_text("", encoding="utf-8")
    (tmp_path / "secret.txt").write_text("secret", encoding="utf-8")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "out").symlink_to(tmp_path)
    return folder


@pytest.fixture
def server(site: Path) -> Iterator[ThreadingHTTPServer]:
    with server_of(site, 0) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def get(server: ThreadingHTTPServer, path: str, host: str | None = None) -> tuple[int, bytes]:
    port = server.server_address[1]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path, headers={"Host": host or f"127.0.0.1:{port}"})
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_pages_are_served_on_loopback_alone(server: ThreadingHTTPServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert get(server, "/") == (200, b"front")
    assert get(server, "/index.html", f"localhost:{server.server_address[1]}") == (200, b"front")


UPWARDS = (
    "/../secret.txt",
    "/%2e%2e/secret.txt",
    "/static/..%2f..%2fsecret.txt",
    "//../secret.txt",
    "/..%5csecret.txt",
)
LINKED = ("/link.txt", "/out/", "/out/secret.txt")
ODD = ("/static/", "/static", "/nothing", "/index.html%00.txt")


@pytest.mark.parametrize("path", [*UPWARDS, *LINKED, *ODD])
def test_nothing_else_is_served(server: ThreadingHTTPServer, path: str) -> None:
    status, body = get(server, path)
    assert status in (301, 404) and b"secret" not in body.replace(path.encode(), b"")
    if status == 301:  # to the folder, of which there is no listing
        assert get(server, f"{path}/")[0] == 404


def test_a_name_of_another_site_that_leads_here_is_refused(server: ThreadingHTTPServer) -> None:
    status, body = get(server, "/", "elsewhere.example")
    assert status == 403 and b"front" not in body


def test_a_port_in_use_is_an_error_with_a_way_out(server: ThreadingHTTPServer, site: Path) -> None:
    with pytest.raises(ConfigError, match="choose another with --port"):
        server_of(site, server.server_address[1])


def test_a_site_is_told_from_a_results_folder(site: Path, tmp_path: Path) -> None:
    assert is_site(site) and not is_site(tmp_path)


def test_ctrl_c_ends_it_without_an_error(site: Path) -> None:
    command = [sys.executable, "-m", "mmbench", "view", str(site)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        port = int(line.removeprefix("http://127.0.0.1:").partition("/")[0])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/")
        assert connection.getresponse().read() == b"front"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0 and errors == "ended\n"
