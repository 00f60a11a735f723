"""The web server of `clfew label`: a page, its images and its requests, for one person on this machine.

Whoever else can reach the port gets nothing: not another program's page in the same browser, not a name
that was rebound to this machine, not a visitor without the address that was printed.
"""

import contextlib
import errno
import hmac
import os
import re
import secrets
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from clfew.console import say
from clfew.errors import UserError
from clfew.labelling import wire
from clfew.labelling.wire import Refused

MOST_CONNECTIONS = 32
"""At once. A browser opens six."""
REQUEST_SECONDS = 10.0
"""For a whole request from its first byte, and for the first byte on a new connection."""
IDLE_SECONDS = 30.0
"""Between two requests on a connection."""
SEND_SECONDS = 30.0
LINGER_SECONDS = 0.5

_PICTURE = re.compile(r"/(image|thumb)/([0-9A-Za-z]{1,64})/([0-9]{1,9})")
_SIZES = {"image": "large", "thumb": "small"}


class _Gone(Exception):
    """The other side has closed the connection, or takes no answer."""


class LabelServer:
    """Serves the page of `clfew label` on 127.0.0.1 to the one browser that opens `address` first.

    page: HTML in which `__NONCE__` stands for the nonce of its style and script. do(request): does what
    the page asks for, and returns the state after it. state(): what is shown, with "version", an int.
    picture(number, size): bytes and MIME type of an image, size "large" or "small". All three are called
    by several threads, and may raise Refused. port: None for any free one.

    session: random letters and digits in the addresses of images, so that a browser that kept the images
    of another run does not show them. Raises UserError if the port cannot be had.
    """

    def __init__(
        self,
        page: str,
        do: Callable[[dict[str, Any]], dict[str, Any]],
        state: Callable[[], dict[str, Any]],
        picture: Callable[[int, str], tuple[bytes, str]],
        port: int | None = None,
    ) -> None:
        self._page, self._do, self._state, self._picture = page, do, state, picture
        self._listener = _listen(port or 0, self)
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._token: str | None = secrets.token_urlsafe(32)
        self._secret = secrets.token_urlsafe(32)
        self._failures: set[str] = set()
        self.session = secrets.token_hex(8)
        self.port: int = self._listener.server_address[1]
        self.address = f"http://127.0.0.1:{self.port}/?token={self._token}"

    def start(self) -> None:
        """Begins to answer, in threads that do not keep the process from ending."""
        self._thread = threading.Thread(target=self._listener.accept_all, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Frees the port and ends all connections within 2 s; answers under way are given first."""
        self._listener.is_stopping = True
        if self._thread is not None:
            with contextlib.suppress(OSError):  # It wakes the thread that waits for connections.
                socket.create_connection(("127.0.0.1", self.port), 0.1).close()
            self._thread.join()
            self._thread = None
        self._listener.server_close()
        self._listener.end_connections()

    def answer(self, request: wire.Request, read_body: Callable[[int], bytes]) -> wire.Answer:
        """Returns the answer to a request whose Host is right.

        read_body(count) is called only for one that may be done. Raises Refused, and whatever `do`,
        `state` and `picture` raise.
        """
        path, _, query = request.target.partition("?")
        wire.check_form(request)
        token = query[len("token=") :] if path == "/" and query.startswith("token=") else None
        # Another program's page on another port of this machine is "same-site".
        is_own = request.only("sec-fetch-site") in (None, "same-origin", "none")
        if not is_own and token is None:
            raise Refused(403, "Another site asked for this.", "open the page by its own address.")
        if request.method == "GET" and token is not None:
            return self._exchange(request, token)
        if not self._is_known(request):
            raise Refused(
                403,
                "This browser has not opened the address that the running `clfew label` printed.",
                "open that address, or start `clfew label` again: it goes on where it was.",
            )
        if (request.method == "POST") != (path == "/do"):
            raise Refused(405, "This cannot be asked for in this way.")
        if path == "/do":
            return self._decide(request, read_body)
        if path == "/":
            nonce = secrets.token_urlsafe(16)
            body = self._page.replace("__NONCE__", nonce).encode()
            return wire.Answer(200, wire.HTML, body, nonce=nonce)
        if path == "/state":
            return self._say_state(query)
        return self._show(request.target)

    def failed(self, error: Exception) -> None:
        """Says on stderr what went wrong in this program: once, as a page asks again and again."""
        text = f"An answer to the page failed: {type(error).__name__}: {error}"
        with self._lock:
            is_new = text not in self._failures
            self._failures.add(text)
        if is_new:
            say(text)

    def _exchange(self, request: wire.Request, token: str) -> wire.Answer:
        with self._lock:
            is_first = self._token is not None and _is_same(token, self._token)
            if is_first:
                self._token = None
        kept = wire.Answer.headers
        if is_first:
            cookie = f"{wire.cookie_name(request)}={self._secret}; HttpOnly; SameSite=Strict; Path=/"
            kept = (*kept, f"Set-Cookie: {cookie}")
        elif not self._is_known(request):
            raise Refused(
                403,
                "This address has been used already, or is an earlier one.",
                "stop `clfew label` with Ctrl-C and start it again: it goes on where it was.",
            )
        return wire.Answer(200, wire.HTML, wire.GO_ON.encode(), kept)

    def _is_known(self, request: wire.Request) -> bool:
        pairs = ";".join(request.headers.get("cookie", [])).split(";")
        cookies = [pair.strip(" \t").partition("=") for pair in pairs]
        name = wire.cookie_name(request)
        return any(key == name and _is_same(value, self._secret) for key, _, value in cookies)

    def _decide(self, request: wire.Request, read_body: Callable[[int], bytes]) -> wire.Answer:
        wanted = wire.json_object(read_body(wire.length_of(request)))
        try:
            return wire.json_answer(
                200, {"ok": True, "state": {**self._do(wanted), "session": self.session}}
            )
        except Refused as refusal:
            shown = {**self._state(), "session": self.session}
            words = {"ok": False, "error": refusal.sentence, "hint": refusal.hint, "state": shown}
            return wire.json_answer(refusal.status, words)

    def _say_state(self, query: str) -> wire.Answer:
        state = self._state()
        since = re.search("(?:^|&)since=([0-9]{1,18})(?:&|$)", query)
        if since and int(since[1]) == state["version"]:
            return wire.json_answer(200, {"version": state["version"], "same": True})
        return wire.json_answer(200, {**state, "session": self.session})

    def _show(self, target: str) -> wire.Answer:
        found = _PICTURE.fullmatch(target)
        if not found or found[2] != self.session:
            raise Refused(404, "There is nothing here.")
        body, kind = self._picture(int(found[3]), _SIZES[found[1]])
        return wire.Answer(200, kind, body, ("Cache-Control: private, max-age=86400, immutable",))


class _Listener(ThreadingHTTPServer):
    """Accepts connections, and serves at most MOST_CONNECTIONS at once."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    timeout = 0.2
    """Seconds after which `accept_all` looks whether it is to stop."""
    # Elsewhere than on POSIX, it would take the port from a program that listens on it.
    allow_reuse_address = os.name == "posix"
    allow_reuse_port = False

    def __init__(self, port: int, site: LabelServer) -> None:
        self.site, self.is_stopping = site, False
        self._changed = threading.Condition()
        self._connections: set[Any] = set()
        super().__init__(("127.0.0.1", port), _Connection)

    def accept_all(self) -> None:
        while not self.is_stopping:
            self.handle_request()

    def server_bind(self) -> None:
        # HTTPServer's would also ask the network for this machine's name.
        socketserver.TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._changed:
            is_full = len(self._connections) >= MOST_CONNECTIONS
            if not is_full:
                self._connections.add(request)
        if not is_full:
            super().process_request(request, client_address)
            return
        with contextlib.suppress(OSError):  # All without waiting: this thread accepts for all.
            request.setblocking(False)
            request.sendall(
                wire.rendered(wire.refusal_answer(Refused(503, "Too many connections."), None), False)
            )
            request.recv(2**16)  # What is left unread would make the answer be thrown away.
        super().shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        with self._changed:
            self._connections.discard(request)
            self._changed.notify_all()

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, Exception) and not isinstance(error, OSError):
            self.site.failed(error)

    def end_connections(self) -> None:
        for how, seconds in ((socket.SHUT_RD, 1.0), (socket.SHUT_RDWR, 0.5)):
            with self._changed:
                for connection in self._connections:
                    with contextlib.suppress(OSError):
                        connection.shutdown(how)
                self._changed.wait_for(lambda: not self._connections, seconds)


class _Connection(BaseHTTPRequestHandler):
    """Reads requests within the limits and writes answers.

    It has its own reading, as the base class's takes longer lines, and other ones than HTTP/1.1 has.
    """

    server: _Listener
    disable_nagle_algorithm = True

    def handle(self) -> None:
        self._ahead, self._patience = b"", REQUEST_SECONDS
        with contextlib.suppress(_Gone, OSError):
            while self._serve_one():
                self._patience = IDLE_SECONDS

    def _serve_one(self) -> bool:
        """Answers a request. Returns whether another one may follow."""
        head, target, is_kept = b"", None, False
        try:
            head = self._read_head()
            request = wire.parsed(head)
            wire.host_of(request)
            target = request.target
            answer = self.server.site.answer(request, partial(self._read_body, request))
            is_kept = request.keeps_connection() and not self.server.is_stopping
        except Refused as refusal:
            answer = wire.refusal_answer(refusal, target)
        except _Gone:
            return False
        except Exception as error:
            self.server.site.failed(error)
            words = ("Something went wrong in `clfew label`.", "its terminal says what.")
            answer = wire.refusal_answer(Refused(500, *words), target)
        self._send(wire.rendered(answer, is_kept, head.startswith(b"HEAD ")))
        if not is_kept:
            self._linger()
        return is_kept

    def _read_head(self) -> bytes:
        """Returns a request's line and headers, without the empty line."""
        if not self._ahead:
            try:
                self._ahead += self._receive(time.monotonic() + self._patience)
            except Refused:
                raise _Gone from None
        self._latest = time.monotonic() + REQUEST_SECONDS
        while (end := self._ahead.find(b"\r\n\r\n")) < 0:
            wire.check_head(self._ahead)
            self._ahead += self._receive(self._latest)
        head, self._ahead = self._ahead[:end], self._ahead[end + 4 :]
        return head

    def _read_body(self, request: wire.Request, count: int) -> bytes:
        if request.only("expect") and not request.is_old:
            self._send(b"HTTP/1.1 100 Continue\r\n\r\n")
        while len(self._ahead) < count:
            self._ahead += self._receive(self._latest)
        body, self._ahead = self._ahead[:count], self._ahead[count:]
        return body

    def _receive(self, latest: float) -> bytes:
        """Returns at least a byte. Raises Refused after the moment `latest`, and _Gone."""
        left = latest - time.monotonic()
        try:
            if left <= 0:
                raise TimeoutError
            self.connection.settimeout(left)
            received = self.connection.recv(2**16)
        except TimeoutError:
            raise Refused(408, "The request took too long.") from None
        except OSError:
            raise _Gone from None
        if not received:
            raise _Gone
        return received

    def _send(self, content: bytes) -> None:
        try:
            self.connection.settimeout(SEND_SECONDS)
            self.connection.sendall(content)
        except OSError:
            raise _Gone from None

    def _linger(self) -> None:
        """Reads on for a moment: closing on what is still being sent would lose the answer."""
        self.connection.shutdown(socket.SHUT_WR)
        latest, left = time.monotonic() + LINGER_SECONDS, 2**20
        with contextlib.suppress(Refused):
            while left > 0:
                left -= len(self._receive(latest))


def _listen(port: int, site: LabelServer) -> _Listener:
    another = "name another one with --port, or none for any free one."
    try:
        return _Listener(port, site)
    except OverflowError:
        raise UserError(f"{port} is not a port.", another) from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"Port {port} is taken by another program.", another) from None
        raise UserError(f"Port {port} cannot be used: {error.strerror or error}.", another) from None


def _is_same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())
