"""Servers on 127.0.0.1 for tests: HTTP that behaves and misbehaves on demand, and S3."""

import contextlib
import threading
from collections import Counter
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class HttpServer:
    """Serves `files` by name; `faults` has what the next GET requests for a name get instead.

    A fault is a status (500), or "cut" (the connection closes half way), "stall" (half the bytes,
    then none until the server closes) or "short" (half the bytes, and no more promised).

    Attributes:
        gets: how many GET requests each name had.
        authorizations: the headers of that name, as they came.
    """

    def __init__(self, files):
        self.files = dict(files)
        self.faults = {}
        self.etags = {}
        self.head_status = {}
        self.with_size = True
        self.gets = Counter()
        self.authorizations = []
        self.closing = threading.Event()
        self._lock = threading.Lock()

    def next_fault(self, name):
        with self._lock:
            self.gets[name] += 1
            waiting = self.faults.get(name, [])
            return waiting.pop(0) if waiting else None

    def url(self, name, user="", query=""):
        return f"http://{user}127.0.0.1:{self.port}/{name}{query}"

    @property
    def port(self):
        return self._server.server_address[1]

    def __enter__(self):
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def handler_of(server):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def name(self):
            return self.path.lstrip("/").partition("?")[0]

        def begin(self, status, size):
            self.send_response(status)
            if server.with_size:
                self.send_header("Content-Length", str(size))
            else:
                self.send_header("Connection", "close")
            self.send_header("Last-Modified", formatdate(0, usegmt=True))
            if etag := server.etags.get(self.name()):
                self.send_header("ETag", etag)
            self.end_headers()

        def do_HEAD(self):
            server.authorizations.append(self.headers.get("Authorization"))
            content = server.files.get(self.name())
            known = 404 if content is None else 200
            status = server.head_status.get(self.name(), known)
            self.begin(status, len(content) if status == 200 else 0)

        def do_GET(self):
            content = server.files.get(self.name())
            fault = server.next_fault(self.name())
            if content is None:
                self.begin(404, 0)
            elif isinstance(fault, int):
                self.begin(fault, 0)
            else:
                self.send(content, fault)

        def send(self, content, fault):
            half = content[: len(content) // 2]
            self.begin(200, len(half) if fault == "short" else len(content))
            with contextlib.suppress(OSError):
                self.wfile.write(half if fault else content)
            if fault == "stall":
                server.closing.wait()
            if fault or not server.with_size:
                self.close_connection = True

    return Handler


@contextlib.contextmanager
def s3_server(monkeypatch):
    """moto's S3, found by s3fs and boto3 through the environment; gives its client."""
    import boto3
    import fsspec
    from moto.server import ThreadedMotoServer

    fsspec.get_filesystem_class("s3").clear_instance_cache()  # of an earlier server's address
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    try:
        yield boto3.client("s3")
    finally:
        server.stop()
