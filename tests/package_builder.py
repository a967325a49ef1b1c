"""Packages for tests: archives of a few files, and a web server that hands them out."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def pack(file: Path, files: Mapping[str, str]) -> Path:
    """A .tar.gz with these files; those in bin/ are executable. The same files make the same archive at any time."""
    with (
        file.open("wb") as raw,
        gzip.GzipFile(fileobj=raw, mode="wb", mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as archive,
    ):
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            info.mode = 0o755 if name.startswith("bin/") else 0o644
            archive.addfile(info, io.BytesIO(text.encode()))
    return file


def make_wheel(folder: Path, name: str, version: str, modules: Mapping[str, str], scripts: Mapping[str, str]) -> Path:
    """A wheel without dependencies; `scripts` are commands and the functions that they call."""
    info = f"{name}-{version}.dist-info"
    commands = "".join(f"{command} = {function}\n" for command, function in scripts.items())
    contents = {
        **modules,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{commands}",
    }
    contents[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*contents, f"{info}/RECORD"])
    file = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as wheel:
        for path, text in contents.items():
            wheel.writestr(path, text)
    return file


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


class WebServer:
    """Files by their path, with ETags; `asked` are the requests, each with the status that it got.

    What is put there is kept. While `hung` is set it accepts requests and says nothing.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str, int]] = []
        self.etags = True
        self.status = 200
        self.hung = threading.Event()
        self.let_go = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                content = outer.files.get(self.path)
                etag = f'"{hashlib.sha256(content or b"").hexdigest()[:16]}"'
                if outer.hung.is_set():
                    outer.let_go.wait(30)
                if outer.status != 200:
                    self.answer(outer.status)
                elif content is None:
                    self.answer(404)
                elif self.headers.get("If-None-Match") == etag:
                    self.answer(304)
                else:
                    self.answer(200, content, {"ETag": etag} if outer.etags else {})

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_PUT(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                if outer.status == 200:
                    outer.files[self.path] = content
                self.answer(201 if outer.status == 200 else outer.status)

            def answer(self, status: int, content: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
                outer.asked.append((self.command, self.path, status))
                self.send_response(status)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                if status != 304:
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def serving(self) -> Iterator[WebServer]:
        thread = threading.Thread(target=self._server.serve_forever)
        thread.start()
        try:
            yield self
        finally:
            self.let_go.set()
            self._server.shutdown()
            self._server.server_close()
            thread.join()
