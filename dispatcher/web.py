"""/live, /ready and /metrics over HTTP, in threads of its own: it answers even when the event loop is stuck."""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import make_wsgi_app  # pyright: ignore[reportUnknownVariableType]

from taskyard.dispatcher.metrics import Metrics
from taskyard.schemas.errors import ConfigError

StartResponse = Callable[[str, list[tuple[str, str]]], Any]

_STUCK_AFTER_S = 10.0
# Clients served at once.
_MAX_CLIENTS = 32


class Health:
    """What the service tells of itself. Written by the event loop, read by the web's thread."""

    def __init__(self) -> None:
        # Monotonic; set again and again by the loop.
        self.beat_s = time.monotonic()
        # Part -> whether it works; all must.
        self.parts: dict[str, bool] = {}

    @property
    def is_live(self) -> bool:
        """Whether the event loop turns."""
        return time.monotonic() - self.beat_s < _STUCK_AFTER_S

    @property
    def is_ready(self) -> bool:
        """Whether the dispatcher can place tasks."""
        return self.is_live and bool(self.parts) and all(self.parts.values())


class Web:
    """Serves until `stop`. Raises ConfigError if the port cannot be had."""

    def __init__(self, host: str, port: int, health: Health, metrics: Metrics) -> None:
        self._health = health
        self._metrics: Any = make_wsgi_app(metrics.registry)
        try:
            self._server = make_server(host, port, self._answer, _Server, _Handler)
        except OSError as error:
            raise ConfigError(
                f"http: cannot listen on {host}:{port}: {error.strerror}; choose another with --http-port, 0 for any"
            ) from error
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="web", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop listening and wait for the thread."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        health = self._health
        match environ["PATH_INFO"]:
            case "/metrics":
                return self._measured(environ, start_response)
            case "/live":
                return _json(start_response, {"live": health.is_live}, is_well=health.is_live)
            case "/ready":
                body = {"ready": health.is_ready, **health.parts}
                return _json(start_response, body, is_well=health.is_ready)
            case _:
                start_response("404 Not Found", [("Content-Type", "text/plain")])
                return [b"/live, /ready and /metrics are here\n"]

    def _measured(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        try:
            return self._metrics(environ, start_response)
        except (TypeError, ValueError):  # prometheus-client on an Accept whose version is no number
            start_response("400 Bad Request", [("Content-Type", "text/plain")])
            return [b"the Accept header is not understood\n"]


def _json(start_response: StartResponse, body: dict[str, bool], *, is_well: bool) -> list[bytes]:
    start_response("200 OK" if is_well else "503 Service Unavailable", [("Content-Type", "application/json")])
    return [json.dumps(body).encode() + b"\n"]


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each client: one that connects and says nothing must not keep probes out."""

    request_queue_size = _MAX_CLIENTS
    daemon_threads = True

    def __init__(self, *args: Any, **more: Any) -> None:
        self._free = threading.BoundedSemaphore(_MAX_CLIENTS)
        super().__init__(*args, **more)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve in a thread of its own, or hang up if there are too many."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one client."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is not news."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(WSGIRequestHandler):
    # For each piece of a request, in seconds.
    timeout = 2

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Scrapes are not news."""
