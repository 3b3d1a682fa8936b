"""The proxy does to connections what its methods say, and the journals survive a kill."""

import contextlib
import socket
import threading
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.fault.journal import Journal, read_runs
from tests.fault.proxy import Proxy

_SILENCE_S = 0.2
_WITHIN_S = 5.0
_XREAD = b"*4\r\n$5\r\nXREAD\r\n$7\r\nSTREAMS\r\n$1\r\nq\r\n$3\r\n0-0\r\n"


class _Echo(threading.Thread):
    """Answers with what it hears; counts the connections that it saw end."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.heard = bytearray()
        self.has_heard = threading.Event()
        self.has_lost_one = threading.Event()

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(1024):
                self.heard += data
                self.has_heard.set()
                connection.sendall(data)
        self.has_lost_one.set()

    def stop(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self.join(_WITHIN_S)


@pytest.fixture
def echo() -> Generator[_Echo]:
    """A server."""
    made = _Echo()
    made.start()
    yield made
    made.stop()


@pytest.fixture
def proxy(echo: _Echo) -> Generator[Proxy]:
    """The proxy before it."""
    made = Proxy(echo.port)
    yield made
    made.stop()


@pytest.fixture
def client(proxy: Proxy) -> Generator[socket.socket]:
    """A client that has had its first answer."""
    with _connected(proxy) as made:
        yield made


@contextlib.contextmanager
def _connected(proxy: Proxy) -> Generator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), _WITHIN_S) as made:
        made.sendall(b"first")
        assert made.recv(100) == b"first"
        made.settimeout(_SILENCE_S)
        yield made


def test_a_cut_resets_what_is_connected_and_new_connections_work(proxy: Proxy, client: socket.socket) -> None:
    """The fixture of the second one asks."""
    proxy.cut()

    with pytest.raises(ConnectionResetError):
        client.recv(100)
    with _connected(proxy):
        pass


def test_a_half_open_connection_is_silent_here_and_gone_there(proxy: Proxy, client: socket.socket, echo: _Echo) -> None:
    """The client may write as much as it likes."""
    proxy.half_open()
    client.sendall(b"second")

    assert echo.has_lost_one.wait(_WITHIN_S)
    with pytest.raises(TimeoutError):
        client.recv(100)
    assert echo.heard == b"first"


def test_a_lost_reply_belongs_to_a_request_that_has_arrived(proxy: Proxy, client: socket.socket, echo: _Echo) -> None:
    """What makes callers repeat themselves."""
    proxy.lose_replies()
    echo.has_heard.clear()
    client.sendall(b"second")

    assert echo.has_heard.wait(_WITHIN_S)
    with pytest.raises(TimeoutError):
        client.recv(100)


def test_what_was_swallowed_never_comes(proxy: Proxy, client: socket.socket, echo: _Echo) -> None:
    """The connection is cut when the silence ends."""
    proxy.swallow(is_on=True)
    client.sendall(b"second")
    with pytest.raises(TimeoutError):
        client.recv(100)
    proxy.swallow(is_on=False)

    with pytest.raises(ConnectionResetError):
        client.recv(100)
    assert echo.heard == b"first"


def test_who_reads_streams_gets_no_reply_while_reads_are_lost_and_all_others_do(proxy: Proxy, echo: _Echo) -> None:
    """Also who has read before, and who connects meanwhile; in the end the readers are cut, nobody else is."""
    with _connected(proxy) as old, _connected(proxy) as other:
        old.sendall(_XREAD)
        assert old.recv(100) == _XREAD
        proxy.lose_reads(is_on=True)
        old.sendall(b"again")
        with _connected(proxy) as new:
            new.sendall(_XREAD)
            for reader in (old, new):
                with pytest.raises(TimeoutError):
                    reader.recv(100)
            proxy.lose_reads(is_on=False)

            for reader in (old, new):
                with pytest.raises(ConnectionResetError):
                    reader.recv(100)
        other.sendall(b"second")
        assert other.recv(100) == b"second"
    assert b"again" in echo.heard
    assert echo.heard.count(_XREAD) == 2


def test_a_proxy_that_refuses_accepts_again_and_can_be_aimed_elsewhere(proxy: Proxy) -> None:
    """Its port stays."""
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", proxy.port), _WITHIN_S)
    other = _Echo()
    other.start()
    proxy.aim(other.port)
    proxy.accept()

    with _connected(proxy):
        assert other.heard == b"first"
    other.stop()


def test_a_slow_proxy_keeps_the_order(proxy: Proxy, client: socket.socket) -> None:
    """Pieces wait for different times."""
    proxy.delay(0.01)
    client.settimeout(_WITHIN_S)
    sent = b"".join(b"%03d" % n for n in range(50))
    for at in range(0, len(sent), 3):
        client.sendall(sent[at : at + 3])

    found = b""
    while len(found) < len(sent):
        found += client.recv(1024)
    assert found == sent


def test_a_journal_that_was_cut_off_in_a_line_is_read_up_to_there(tmp_path: Path) -> None:
    """A start without an end is a run that was still going on."""
    file = tmp_path / "w.17.runs"
    journal = Journal(file)
    journal.note("s", "a", 1, "i")
    journal.note("r", "a", 1, "i")
    journal.note("s", "b", 2, "i")
    journal.close()
    with file.open("a") as more:
        more.write("r b 2")

    a, b = read_runs([file])

    assert (a.task_id, a.attempt, a.how, a.process) == ("a", 1, "returned", "w.17")
    assert (b.task_id, b.attempt, b.how) == ("b", 2, "open")
