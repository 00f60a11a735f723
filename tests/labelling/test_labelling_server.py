"""Nobody but the person at the keyboard gets anything from the server of `clfew label`.

Each attack changes one thing of a request that is otherwise right; that the right one is answered is the
first test, and `Site.ask` without changes in the others.
"""

import contextlib
import http.client
import json
import re
import socket
import struct
import sys
import threading
import time
from typing import NamedTuple

import pytest

from clfew.errors import UserError
from clfew.labelling import server as module
from clfew.labelling import wire
from clfew.labelling.server import LabelServer, Refused

PAGE = '<style nonce="__NONCE__"></style><script nonce="__NONCE__">start()</script>'
MARK = "Xmark5Xx"
"""Sent in many places; it must not come back."""


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes
    whole: bytes


class Site:
    """A server with what it was asked to do, and a browser that knows it."""

    def __init__(self, port=None):
        self.done, self.shown = [], {"version": 17, "classes": []}
        self.server = LabelServer(PAGE, self.do, lambda: dict(self.shown), self.picture, port)
        self.host = f"127.0.0.1:{self.server.port}"
        self.token_target = self.server.address.removeprefix(f"http://{self.host}")
        self.cookie = ""

    def do(self, request):
        self.done.append(request)
        return dict(self.shown)

    def picture(self, number, size):
        if number > 9:
            raise Refused(410, f"Image {number} is gone.", "skip it.")
        return f"{size} {number}".encode(), "image/jpeg"

    def enter(self):
        """Opens the address, as the browser does first."""
        given = self.ask("GET", self.token_target, {"Cookie": None}).headers["set-cookie"]
        self.cookie = given.partition(";")[0]
        return given

    def request(self, method="GET", target="/", changes=(), body=b"{}"):
        """The bytes of a request; changes: values of headers, None for one that is left out."""
        headers = {"Host": self.host, "Cookie": self.cookie, "Connection": "close"}
        headers["Sec-Fetch-Site"] = "same-origin"
        if method == "POST":
            headers |= {"Origin": f"http://{self.host}", "Content-Type": "application/json"}
            headers["Content-Length"] = str(len(body))
        headers |= dict(changes)
        lines = [f"{method} {target} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in headers.items() if value is not None]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body if method == "POST" else b"")

    def ask(self, method="GET", target="/", changes=(), body=b"{}"):
        return self.send(self.request(method, target, changes, body))

    def send(self, content):
        return parsed(self.exchange(content))

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.server.port), 10)

    def exchange(self, content):
        """Sends bytes and returns all that comes until the server closes."""
        with self.connect() as connection:
            with contextlib.suppress(ConnectionError):
                connection.sendall(content)
            return rest_of(connection)


def rest_of(connection):
    received = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(2**16):
            received += piece
    return received


def parsed(whole):
    head, _, body = whole.partition(b"\r\n\r\n")
    line, *rows = head.decode("latin-1").split("\r\n")
    names = [row.partition(": ")[0].lower() for row in rows]
    assert len(names) == len(set(names)), names
    headers = {row.partition(": ")[0].lower(): row.partition(": ")[2] for row in rows}
    return Reply(int(line.split()[1]), headers, body, whole)


def until(is_so):
    """Waits until something is so, and fails if it never is."""
    for _ in range(500):
        if is_so():
            return
        time.sleep(0.02)
    raise AssertionError("never")


def crowd(site, stack):
    """Opens as many connections as are served at once."""
    until(lambda: not site.server._listener._connections)  # The last one may be closing.
    for _ in range(module.MOST_CONNECTIONS):
        stack.enter_context(site.connect())
    until(lambda: len(site.server._listener._connections) == module.MOST_CONNECTIONS)


@pytest.fixture
def fresh():
    """fresh(port=None) starts a server whose address nobody has opened."""
    started = []

    def make(port=None):
        started.append(Site(port))
        started[-1].server.start()
        return started[-1]

    yield make
    for some in started:
        some.server.stop()


@pytest.fixture
def site(fresh):
    """A server that the browser knows."""
    some = fresh()
    some.enter()
    return some


# What is right is answered.


def test_the_page_its_state_its_images_and_its_decisions_come_to_the_browser_that_opened_it(site):
    assert b"start()" in site.ask().body
    session = site.server.session
    assert json.loads(site.ask("GET", "/state").body) == {**site.shown, "session": session}
    assert site.ask("GET", f"/image/{session}/5").body == b"large 5"
    assert site.ask("GET", f"/thumb/{session}/5").body == b"small 5"
    reply = site.ask("POST", "/do", body=b'{"do": "label", "image": 5, "class": 1}')
    assert reply.status == 200 and site.done == [{"do": "label", "image": 5, "class": 1}]
    assert json.loads(reply.body) == {"ok": True, "state": {**site.shown, "session": session}}


@pytest.mark.parametrize(
    ("query", "is_same"),
    [
        ("since=17", True),
        ("x=1&since=17", True),
        ("since=017", True),
        ("since=16", False),
        ("since=a", False),
        ("since=", False),
        ("since=17a", False),
        ("since=" + "9" * 5000, False),
    ],
)
def test_a_state_that_has_not_changed_is_not_sent_again(site, query, is_same):
    answer = json.loads(site.ask("GET", f"/state?{query}").body)
    whole = {**site.shown, "session": site.server.session}
    assert answer == ({"version": 17, "same": True} if is_same else whole)


def test_requests_follow_each_other_on_a_connection_even_if_sent_at_once(site):
    one = site.request("POST", "/do", {"Connection": "keep-alive"}, b'{"n": 1}')
    two = site.request("POST", "/do", {"Connection": None}, b'{"n": 2}')
    last = site.request("GET", f"/image/{site.server.session}/5")
    whole = site.exchange(one + two + last)
    assert whole.count(b"HTTP/1.1 200 OK\r\n") == 3 and whole.endswith(b"large 5")
    assert site.done == [{"n": 1}, {"n": 2}]


def test_a_decision_that_is_refused_says_why_and_how_it_stands_and_the_connection_goes_on(site):
    def do(request):
        raise Refused(507, "The disk is full.", "free some space.")

    site.server._do = do
    connection = http.client.HTTPConnection("127.0.0.1", site.server.port)
    headers = {"Cookie": site.cookie, "Origin": f"http://{site.host}"}
    headers["Content-Type"] = "application/json"
    connection.request("POST", "/do", "{}", headers)
    reply = connection.getresponse()
    assert (reply.status, reply.reason) == (507, "Insufficient Storage")
    state = {**site.shown, "session": site.server.session}
    words = {"ok": False, "error": "The disk is full.", "hint": "free some space.", "state": state}
    assert json.loads(reply.read()) == words
    used = connection.sock
    connection.request("GET", "/state", None, headers)
    assert connection.getresponse().status == 200 and connection.sock is used
    connection.close()


def test_a_client_that_asks_before_it_sends_a_body_is_told_to_go_on_if_it_may(site):
    whole = site.request("POST", "/do", {"Expect": "100-continue"}, b'{"n": 1}')
    with site.connect() as connection:
        connection.sendall(whole.removesuffix(b'{"n": 1}'))
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n" and site.done == []
        connection.sendall(b'{"n": 1}')
        assert parsed(rest_of(connection)).status == 200 and site.done == [{"n": 1}]
    stranger = {"Expect": "100-continue", "Origin": "http://evil.example"}
    assert site.ask("POST", "/do", stranger).status == 403
    assert site.ask("POST", "/do", {"Expect": "100-continue, x"}).status == 417


# Who may come: the address, its token, the cookie.


def test_it_listens_on_the_loopback_address_alone(site):
    assert site.server._listener.socket.getsockname() == ("127.0.0.1", site.server.port)
    if sys.platform == "linux":  # Where all of 127.0.0.0/8 is this machine.
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.2", site.server.port), 1)


def test_a_port_that_is_taken_is_named(site):
    with pytest.raises(UserError, match=f"Port {site.server.port} is taken") as caught:
        LabelServer(PAGE, site.do, dict, site.picture, site.server.port)
    assert "--port" in caught.value.hint
    with pytest.raises(UserError, match="70000 is not a port"):
        LabelServer(PAGE, site.do, dict, site.picture, 70000)


def test_the_same_port_serves_the_next_run_at_once_and_knows_nobody_of_the_last(fresh):
    first = fresh()
    first.enter()
    kept = first.connect()
    kept.sendall(first.request(changes={"Connection": "keep-alive"}))
    assert kept.recv(10)
    first.server.stop()
    second = fresh(first.server.port)
    assert second.ask(changes={"Cookie": first.cookie}).status == 403
    assert second.ask("GET", first.token_target, {"Cookie": first.cookie}).status == 403
    second.enter()
    assert second.ask().status == 200 and second.server.session != first.server.session
    kept.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST", "localhost:8000"])
def test_this_machine_has_two_names_and_a_tunnel_gives_another_port(fresh, host):
    some = fresh()
    some.host = host
    given = some.enter()
    assert some.ask().status == 200
    assert some.ask("POST", "/do").status == 200 and some.done == [{}]
    assert given.startswith(f"clfew-{host.partition(':')[2] or 80}=")


HOSTS = [
    None,
    "",
    "evil.example",
    "evil.example:8000",
    "localhost.evil.example",
    "127.0.0.1.nip.io",
    "evil.localhost",
    "localhost.",
    "localhost:",
    "localhost:a",
    "localhost:80:80",
    "localhost@evil.example",
    "127.0.0.1, evil.example",
    "127.1",
    "127.0.0.2",
    "0.0.0.0",
    "0x7f.0.0.1",
    "2130706433",
    "[::1]",
    "[::ffff:127.0.0.1]",
    "127.0.0.1\r\nHost: evil.example",
    "127.0.0.1\r\nHost: 127.0.0.1",
    "127.0.0.1:٣",
]


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
def test_no_other_name_reaches_it_though_it_was_rebound_to_this_machine(site, host, method):
    """The Host is checked first: then a rebound page's own Origin and cookie are worth nothing."""
    host = host and host.encode().decode("latin-1")
    port = f":{site.server.port}" if host and host[-1].isalpha() else ""
    name = host and host + port
    changes = {"Host": name, "Origin": f"http://{name}", "X": MARK}
    changes["Origin"] = changes["Origin"].partition("\r")[0]
    reply = site.ask(method, "/do", changes)
    assert reply.status == 403 and site.done == [] and MARK.encode() not in reply.whole
    assert reply.headers["content-type"] == "text/plain; charset=utf-8" and b"evil" not in reply.whole
    assert site.ask("GET", site.token_target, {"Host": name}).status == 403


def test_the_address_gives_a_cookie_that_no_script_and_no_other_site_has_and_goes_on(fresh):
    some = fresh()
    reply = some.ask("GET", some.token_target, {"Cookie": None, "Sec-Fetch-Site": "cross-site"})
    name, _, kept = reply.headers["set-cookie"].partition("=")
    secret, *how = kept.split("; ")
    assert name == f"clfew-{some.server.port}" and how == ["HttpOnly", "SameSite=Strict", "Path=/"]
    assert len(secret) >= 43 and secret not in some.token_target and secret.encode() not in reply.body
    # Not a redirect, on which a browser that comes from another site sends no such cookie.
    assert reply.status == 200 and b'content="0; url=/"' in reply.body and b'href="/"' in reply.body
    assert some.token_target.partition("=")[2].encode() not in reply.whole


def test_the_address_works_once_and_goes_on_for_who_has_been_there(site):
    again = site.ask("GET", site.token_target)
    assert again.status == 200 and b"url=/" in again.body and "set-cookie" not in again.headers
    stranger = site.ask("GET", site.token_target, {"Cookie": None})
    assert stranger.status == 403 and "set-cookie" not in stranger.headers
    assert b"has been used" in stranger.body and b"Ctrl-C" in stranger.body
    assert stranger.headers["content-type"].startswith("text/html")


@pytest.mark.parametrize("method", ["HEAD", "POST", "OPTIONS", "PUT"])
def test_nothing_but_opening_the_address_uses_it_up(fresh, method):
    some = fresh()
    assert "set-cookie" not in some.ask(method, some.token_target).headers
    assert some.ask("GET", some.token_target, {"Host": "evil.example"}).status == 403
    assert some.ask("GET", some.token_target + "x").status == 403
    assert some.ask("GET", some.token_target[:-1]).status == 403
    assert some.ask("GET", "/?token=").status == 403
    some.enter()
    assert some.ask().status == 200


def test_of_many_that_open_the_address_at_once_one_gets_in(fresh, monkeypatch):
    some, replies = fresh(), []
    barrier, compared = threading.Barrier(16), module._is_same

    def slowly(given, expected):
        is_same = compared(given, expected)
        time.sleep(0.02)
        return is_same

    monkeypatch.setattr(module, "_is_same", slowly)

    def race():
        barrier.wait(10)
        replies.append(some.ask("GET", some.token_target))

    threads = [threading.Thread(target=race) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(reply.status for reply in replies) == [200] + [403] * 15
    assert sum("set-cookie" in reply.headers for reply in replies) == 1


def test_other_cookies_beside_it_are_no_matter(site):
    for cookie in (f"a=b; {site.cookie}", f"{site.cookie};c", f";;=;clfew={MARK}; {site.cookie} ; =é"):
        assert site.ask(changes={"Cookie": cookie}).status == 200
    assert site.ask(changes={"Cookie": f"a=1\r\nCookie: {site.cookie}"}).status == 200


def test_nothing_is_there_without_the_cookie(site):
    name, _, secret = site.cookie.partition("=")
    session, token = site.server.session, site.token_target.partition("=")[2]
    guessed = ["", token, session, MARK, secret[:-1], secret + "x", secret.swapcase(), f'"{secret}"']
    guessed += [f"={secret}", f"é{secret}", f" {secret}", f"{secret},"]
    wrong = [None, "", ";", "=", name, secret, f"x{site.cookie}", f"clfew-1={secret}"]
    wrong += [f"{name}={value}" for value in guessed]
    targets = ["/", "/state", "/state?since=17", f"/image/{session}/5", f"/thumb/{session}/5", "/x"]
    for cookie in wrong:
        for target in targets:
            reply = site.ask("GET", target, {"Cookie": cookie})
            assert reply.status == 403 and MARK.encode() not in reply.whole, (cookie, target)
        assert site.ask("POST", "/do", {"Cookie": cookie}).status == 403
    assert site.done == [] and site.ask().status == 200


# What another site's page can make the browser send.


@pytest.mark.parametrize(
    "origin", [None, "", "null", "http://x.example", "https://{}", "http://{}/", "{}"]
)
def test_a_decision_comes_from_the_page_itself(site, origin):
    origin = origin and origin.format(site.host)
    assert site.ask("POST", "/do", {"Origin": origin}).status == 403 and site.done == []


@pytest.mark.parametrize("origin", ["http://localhost:{}", "http://127.0.0.1", "http://127.0.0.1:{}0"])
def test_another_name_or_port_of_this_machine_is_another_page(site, origin):
    origin = origin.format(site.server.port)
    assert site.ask("POST", "/do", {"Origin": origin}).status == 403 and site.done == []


def test_two_origins_are_none(site):
    own = f"http://{site.host}"
    for origin in (f"{own}\r\nOrigin: {own}", f"{own} http://evil.example", f"{own}, {own}"):
        assert site.ask("POST", "/do", {"Origin": origin}).status in (400, 403)
    assert site.done == []


@pytest.mark.parametrize("kind", ["same-site", "cross-site", "", "x", "none\r\nSec-Fetch-Site: none"])
def test_another_program_on_this_machine_cannot_use_the_browser(site, kind):
    """A page of 127.0.0.1:3000 is same-site: the browser sends it our cookie, but says who asked."""
    for method, target in [("GET", "/"), ("GET", "/state"), ("POST", "/do")]:
        assert site.ask(method, target, {"Sec-Fetch-Site": kind}).status in (400, 403)
    assert site.done == []
    for own in ("same-origin", "none", None):
        assert site.ask(changes={"Sec-Fetch-Site": own}).status == 200


@pytest.mark.parametrize(
    "kind",
    [
        None,
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=application/json",
        "text/plain; application/json",
        "application/jsonx",
        "application/json, text/plain",
        "application/json\r\nContent-Type: text/plain",
    ],
)
def test_what_a_form_can_send_is_no_decision(site, kind):
    assert site.ask("POST", "/do", {"Content-Type": kind}).status in (400, 415) and site.done == []
    for right in ("application/json", "Application/JSON ; charset=utf-8"):
        assert site.ask("POST", "/do", {"Content-Type": right}).status == 200


METHODS = ["OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "HEAD", MARK.upper(), "XMARKX"]


@pytest.mark.parametrize("method", METHODS)
def test_no_other_method_is_answered_and_no_other_site_is_allowed_anything(site, method):
    for target in ("/", "/do", "/state", site.token_target):
        asked = {"Access-Control-Request-Method": "POST", "Origin": "http://evil.example"}
        reply = site.ask(method, target, asked)
        assert reply.status == (400 if method == MARK.upper() else 405)
        assert MARK.upper().encode() not in reply.whole and b"XMARKX" not in reply.whole
        assert not any(name.startswith("access-control") for name in reply.headers)
        assert method != "HEAD" or reply.body == b""


def test_each_address_has_its_method(site):
    assert site.ask("GET", "/do").status == site.ask("POST", "/").status == 405
    assert site.ask("POST", "/state").status == 405 and site.done == []
    assert site.ask("POST", f"/image/{site.server.session}/5").status == 405
    assert "access-control-allow-origin" not in site.ask("POST", "/do").headers


# Images by number.


@pytest.mark.parametrize(
    "number",
    [
        "../../../etc/passwd",
        "..%2f..%2f..%2fetc%2fpasswd",
        "..%252f..%252fetc",
        "%2e%2e/5",
        "..\\..\\5",
        "....//5",
        "./5",
        "//5",
        "5/",
        "5/..",
        "/5",
        "%35",
        "5%00",
        "5.jpg",
        "5?",
        "5?x=1",
        "5;",
        "-5",
        "+5",
        "5e0",
        "0x5",
        "",
        "1" * 10,
        "file:///etc/passwd",
        "C:\\5",
    ],
)
def test_an_image_has_a_number_and_nothing_else(site, number):
    asked = []
    site.server._picture = lambda *what: asked.append(what)
    for kind in ("image", "thumb"):
        reply = site.ask("GET", f"/{kind}/{site.server.session}/{number}")
        assert reply.status == 404 and "etc" not in reply.body.decode()
    assert asked == []


@pytest.mark.parametrize(
    "target",
    [
        "/../etc/passwd",
        "/etc/passwd",
        "/page.html",
        "/favicon.ico",
        "//evil.example/x",
        "/image/5",
        "/image//5",
        "/image/{}",
        "/images/{}/5",
        "/image/{}x/5",
        "/IMAGE/{}/5",
        "/%69mage/{}/5",
    ],
)
def test_nothing_else_is_there(site, target):
    assert site.ask("GET", target.format(site.server.session)).status == 404


def test_digits_of_other_scripts_are_none(site):
    raw = site.request("GET", f"/image/{site.server.session}/5").replace(b"/5 ", "/٥ ".encode())
    assert site.send(raw).status == 400


def test_an_image_that_is_gone_is_refused_in_words(site):
    reply = site.ask("GET", f"/image/{site.server.session}/10")
    assert reply.status == 410 and reply.headers["cache-control"] == "no-store"
    assert json.loads(reply.body) == {"ok": False, "error": "Image 10 is gone.", "hint": "skip it."}


def test_images_are_kept_by_the_browser_and_nothing_else_is(site):
    kept = "private, max-age=86400, immutable"
    for kind in ("image", "thumb"):
        reply = site.ask("GET", f"/{kind}/{site.server.session}/5")
        assert reply.headers["cache-control"] == kept and reply.headers["content-type"] == "image/jpeg"
    for method, target in [("GET", "/"), ("GET", "/state"), ("POST", "/do"), ("GET", site.token_target)]:
        reply = site.ask(method, target)
        assert reply.status == 200 and reply.headers["cache-control"] == "no-store"


# Floods.


def test_a_body_over_the_limit_is_not_read(site):
    most = b'{"n": "' + b"x" * (wire.MOST_BODY - 9) + b'"}'
    assert len(most) == wire.MOST_BODY and site.ask("POST", "/do", body=most).status == 200
    assert site.ask("POST", "/do", body=most + b" ").status == 413
    assert site.ask("POST", "/do", body=b"x" * 5_000_000).status == 413
    for length in ("1" + "0" * 15, "9" * 6000):
        assert site.ask("POST", "/do", {"Content-Length": length}).status == 413
    assert len(site.done) == 1


@pytest.mark.parametrize(
    "length", ["", "-1", "+2", "2.0", "0x2", "2 2", "2, 2", "2\r\nContent-Length: 2"]
)
def test_a_length_is_one_number(site, length):
    assert site.ask("POST", "/do", {"Content-Length": length}).status == 400 and site.done == []


def test_a_length_is_needed_and_chunks_are_not_taken(site):
    assert site.ask("POST", "/do", {"Content-Length": None}).status == 411
    for coding in ("chunked", "identity", "gzip, chunked", "xchunked", ""):
        for length in (None, "2"):
            changes = {"Transfer-Encoding": coding, "Content-Length": length}
            assert site.ask("POST", "/do", changes, b"2\r\n{}\r\n0\r\n\r\n").status == 400
    assert site.ask("GET", "/", {"Transfer-Encoding": "chunked"}).status == 400
    assert site.ask("GET", "/", {"Content-Length": "5"}).status == 400
    assert site.ask("GET", "/", {"Content-Length": "0"}).status == 200 and site.done == []


def test_what_follows_a_refused_request_is_not_taken_for_another(site):
    inner = site.request("POST", "/do")
    for changes in ({"Origin": "http://evil.example"}, {"Content-Type": "text/plain"}, {"Cookie": None}):
        changes |= {"Connection": "keep-alive"}
        whole = site.exchange(site.request("POST", "/do", changes, inner))
        assert whole.count(b"HTTP/1.1 ") == 1 and parsed(whole).headers["connection"] == "close"
    whole = site.exchange(site.request("GET", "/?token=x", {"Cookie": None, "Connection": None}) + inner)
    assert whole.count(b"HTTP/1.1 ") == 1 and site.done == []


def test_an_answer_is_not_lost_on_who_is_still_sending(site, monkeypatch):
    monkeypatch.setattr(module, "LINGER_SECONDS", 5.0)
    with site.connect() as connection:
        connection.sendall(site.request("POST", "/do", {"Content-Length": "99999"}))
        assert parsed(rest_of(connection)).status == 413
        for _ in range(3):  # A server that had closed would reset the connection.
            connection.sendall(b"x" * 1000)
            time.sleep(0.02)


def test_a_length_that_is_too_small_leaves_a_rest_that_is_no_request(site):
    short = {"Content-Length": "2", "Connection": None}
    whole = site.exchange(site.request("POST", "/do", short, b"{}{}\r\n"))
    assert [parsed(whole).status, whole.count(b"HTTP/1.1 400")] == [200, 1] and site.done == [{}]


def test_a_body_that_does_not_come_is_not_waited_for(site, monkeypatch):
    monkeypatch.setattr(module, "REQUEST_SECONDS", 0.2)
    assert site.ask("POST", "/do", {"Content-Length": "9"}).status == 408 and site.done == []
    with site.connect() as connection:  # Cut off in the middle.
        connection.sendall(site.request("POST", "/do", {"Content-Length": "9"}))
        connection.shutdown(socket.SHUT_WR)
        assert rest_of(connection) == b""
    assert site.ask("POST", "/do").status == 200


def test_a_request_line_has_a_limit(site):
    def line(length):
        return "/state?" + "x" * (length - len("GET /state? HTTP/1.1"))

    assert site.ask("GET", line(wire.MOST_LINE)).status == 200
    reply = site.ask("GET", line(wire.MOST_LINE + 1))
    assert reply.status == 414 and b"xxx" not in reply.whole
    assert site.send(b"x" * 3_000_000).status == 414
    assert site.send(b"GET /" + b"x" * 3_000_000).status == 414


def test_headers_have_limits(site):
    rows = len(site.request().split(b"\r\n")) - 3
    most = {f"X-{number}": "" for number in range(wire.MOST_ROWS - rows)}
    assert site.ask(changes=most).status == 200
    assert site.ask(changes={**most, "Y": ""}).status == 431
    length = len(site.request()) - len("GET / HTTP/1.1\r\n\r\n\r\n")
    wide = "x" * (wire.MOST_HEADERS - length - len("\r\nX: "))
    assert site.ask(changes={"X": wide}).status == 200
    assert site.ask(changes={"X": wide + "x"}).status == 431
    start = b"GET / HTTP/1.1\r\n"
    for flood in (b"X: " + b"x" * 3_000_000, b"X: x\r\n" * 500_000, b"a:" * 1_000_000):
        reply = site.send(start + flood)
        assert reply.status == 431 and b"xxx" not in reply.whole


def test_headers_at_the_limit_may_come_in_pieces(site):
    rows = len(site.request().split(b"\r\n")) - 3
    whole = site.request(changes={f"X-{number}": "" for number in range(wire.MOST_ROWS - rows)})
    with site.connect() as connection:
        for piece in (whole[:-3], whole[-3:-2], whole[-2:-1], whole[-1:]):
            connection.sendall(piece)
            time.sleep(0.02)
        assert parsed(rest_of(connection)).status == 200


@pytest.mark.parametrize("part", ["line", "headers", "body"])
def test_a_request_that_comes_byte_by_byte_is_cut_off(site, monkeypatch, part):
    monkeypatch.setattr(module, "REQUEST_SECONDS", 0.3)
    whole = site.request("POST", "/do", {"Content-Length": "1000"}, b"")
    sent = {"line": b"", "headers": whole[:-2], "body": whole}[part]
    slow = {"line": b"G" * 1000, "headers": b"X: " + b"x" * 1000, "body": b" " * 999}[part]
    with site.connect() as connection:
        connection.sendall(sent)
        connection.settimeout(0.01)
        for number in range(1000):
            with contextlib.suppress(TimeoutError):
                assert connection.recv(100).startswith(b"HTTP/1.1 408 ")
                break
            connection.sendall(slow[number : number + 1])
        else:
            raise AssertionError("it waits for ever")
    assert site.done == [] and site.ask().status == 200


def test_a_connection_on_which_nothing_comes_is_closed(site, monkeypatch):
    monkeypatch.setattr(module, "REQUEST_SECONDS", 0.2)
    with site.connect() as connection:
        assert connection.recv(100) == b""
    monkeypatch.setattr(module, "REQUEST_SECONDS", 10.0)
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.2)
    with site.connect() as connection:
        connection.sendall(site.request("GET", "/state", {"Connection": "keep-alive"}))
        assert parsed(rest_of(connection)).headers["connection"] == "keep-alive"


def test_an_answer_that_is_not_taken_is_given_up(site, monkeypatch):
    monkeypatch.setattr(module, "SEND_SECONDS", 0.2)
    site.server._picture = lambda number, size: (bytes(50_000_000), "image/jpeg")
    with site.connect() as connection:
        connection.sendall(site.request("GET", f"/image/{site.server.session}/5"))
        until(lambda: site.server._listener._connections)
        until(lambda: not site.server._listener._connections)


def test_many_connections_use_up_nothing_and_the_page_goes_on_after_them(site):
    threads = threading.active_count()
    with contextlib.ExitStack() as stack:
        crowd(site, stack)
        for _ in range(100):
            assert parsed(site.exchange(b"")).status == 503
        assert threading.active_count() <= threads + module.MOST_CONNECTIONS
    until(lambda: not site.server._listener._connections)
    assert site.ask().status == 200


def test_connections_that_stay_make_room_by_themselves(site, monkeypatch):
    monkeypatch.setattr(module, "REQUEST_SECONDS", 0.3)
    with contextlib.ExitStack() as stack:
        for _ in range(3 * module.MOST_CONNECTIONS):
            connection = stack.enter_context(site.connect())
            with contextlib.suppress(ConnectionError):
                connection.sendall(b"GET / HTTP/1.1\r\nX: ")
        until(lambda: len(site.server._listener._connections) < module.MOST_CONNECTIONS)
        assert site.ask().status == 200


# What is no request.


@pytest.mark.parametrize(
    "target", ["http://x.example/", "http://{}/", "https://{}/state", "{}", "*", "x"]
)
def test_an_address_is_a_path(site, target):
    target = target.format(site.host)
    assert site.ask("GET", target).status == site.ask("POST", target).status == 400


@pytest.mark.parametrize(
    "raw",
    [
        b"GET /\r\n",  # HTTP/0.9.
        b"GET / HTTP/0.9\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: H\r\n\r\n",
        b"GET / HTTP/1.2\r\nHost: H\r\n\r\n",
        b"GET / HTTP/1.1x\r\nHost: H\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"get / HTTP/1.1\r\nHost: H\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: H\r\n\r\n",
        b"GET\t/ HTTP/1.1\r\nHost: H\r\n\r\n",
        b" GET / HTTP/1.1\r\nHost: H\r\n\r\n",
        b"\r\nGET / HTTP/1.1\r\nHost: H\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: H\r\n\r\n",
        b"GET /\xc3\xa9 HTTP/1.1\r\nHost: H\r\n\r\n",
        b"GET / HTTP/1.1\nHost: H\n\n",
        b"GET / HTTP/1.1\r\nHost: H\n\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: H\r\nX: a\x00b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: H\r\nX: a\rb\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: H\r\nX : a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: H\r\n folded: a\r\n\r\n",
        b"GET / HTTP/1.1\r\n Host: H\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: H\r\nnothing\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: H\r\n: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n",  # TLS.
        bytes(range(256)),
        b"\x00\r\n\r\n",
    ],
)
def test_what_is_not_http_is_refused_and_does_not_come_back(site, raw):
    raw = raw.replace(b"Host: H", f"Host: {site.host}\r\nCookie: {site.cookie}".encode())
    reply = site.send(raw)
    assert reply.status == 400 and reply.headers["content-type"].startswith("text/plain")
    assert b"\x00" not in reply.whole and site.cookie.encode() not in reply.whole


def test_a_request_of_an_older_version_is_answered_if_it_says_the_host(site):
    old = site.request().replace(b"HTTP/1.1", b"HTTP/1.0").replace(b"Connection: close", b"X: y")
    assert parsed(site.exchange(old + old)).headers["connection"] == "close"
    assert site.exchange(old + old).count(b"HTTP/1.1 200") == 1
    assert site.send(b"GET / HTTP/1.0\r\n\r\n").status == 403


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"1",
        b"null",
        b'"label"',
        b"{",
        b"{}{}",
        b"{'do': 1}",
        b"\xff",
        b'{"a": "\xed\xa0\x80"}',
        '{"do": "é"}'.encode("utf-16"),
        b"\xef\xbb\xbf{}",
        b'{"n": NaN}',
        b'{"n": -Infinity}',
        b'{"n": 1e999}',
        b'{"n": ' + b"9" * 60_000 + b"}",
        b'{"n": -' + b"9" * 30 + b"}",
        b"[" * 60_000,
        b'{"a":' * 10_000,
        b'{"a":' + b"[" * 30_000 + b"]" * 30_000 + b"}",
        b'{"a":' * 12 + b"1" + b"}" * 12,
    ],
    ids=lambda body: repr(body[:12]),
)
def test_what_is_not_a_small_json_object_is_no_decision(site, body, capsys):
    assert site.ask("POST", "/do", body=body).status == 400 and site.done == []
    fine = b'{"wrong": [{"image": 999999999999999999, "class": null}], "x": 0.5, "y": "\\ud800\\u0000"}'
    assert site.ask("POST", "/do", body=fine).status == 200
    assert site.done == [json.loads(fine)] and capsys.readouterr().err == ""


# What comes back.


def test_names_are_text_and_never_markup(site):
    name = "</script><img src=x onerror=alert(1)>\ud800\u2028é"
    site.shown["classes"] = [{"id": 1, "name": name}]
    for reply in (site.ask("GET", "/state"), site.ask("POST", "/do")):
        assert reply.status == 200 and b"<" not in reply.body and reply.body.isascii()
        assert reply.headers["content-type"] == "application/json"
        assert reply.headers["x-content-type-options"] == "nosniff"
        answer = json.loads(reply.body)
        assert answer.get("state", answer)["classes"][0]["name"] == name


def test_nothing_of_a_request_comes_back_in_an_answer(site):
    markup = f"<script>{MARK}</script>"
    for target in ("/{}", "/?token={}", "/?{}", "/image/{}/1", "/state?since={}"):
        for cookie in (site.cookie, f"a={MARK}", markup):
            changes = {"Cookie": cookie, "X-Name": MARK, "User-Agent": markup, "Referer": MARK}
            assert MARK.encode() not in site.ask("GET", target.format(MARK), changes).whole
            target = target.format(markup)
            assert MARK.encode() not in site.ask("GET", target, changes).whole
    changes = {"Origin": f"http://{MARK}"}
    assert MARK.encode() not in site.ask("POST", "/do", changes).whole
    assert MARK.encode() not in site.ask("POST", "/do", body=f'{{"{MARK}": '.encode()).whole
    assert MARK.encode() not in site.ask("POST", f"/{MARK}").whole
    assert MARK.encode() not in site.send(f"{MARK} {MARK} {MARK}\r\n\r\n".encode()).whole


def test_every_answer_says_what_the_browser_must_not_do(site):
    def fail():
        raise ZeroDivisionError

    session = site.server.session
    right = ("/", site.token_target, "/state", f"/image/{session}/1")
    replies = [site.ask("GET", target) for target in right]
    replies += [site.ask("POST", "/do"), site.ask("GET", "/x"), site.ask("PUT"), site.ask("GET", "x")]
    replies += [site.ask(changes={"Cookie": None}), site.ask("GET", "/state", {"Cookie": None})]
    replies += [site.ask(changes={"Host": "x"}), site.ask("GET", "/" + "x" * 9000), site.send(b"\r\n")]
    replies += [site.ask(changes={"X": "x" * 17_000})]
    replies += [site.ask("POST", "/do", {"Content-Length": "99999"})]
    site.server._state = fail
    replies += [site.ask("GET", "/state")]
    with contextlib.ExitStack() as stack:
        crowd(site, stack)
        replies += [parsed(site.exchange(b""))]
    statuses = [reply.status for reply in replies]
    assert statuses == [200] * 5 + [404, 405, 400, 403, 403, 403, 414, 400, 431, 413, 500, 503]
    for reply in replies:
        parts = reply.headers["content-security-policy"].split("; ")
        policy = dict(part.split(" ", 1) for part in parts)
        nonce = policy.pop("style-src")
        assert re.fullmatch(r"'nonce-[0-9A-Za-z_-]{22}'", nonce) and policy.pop("script-src") == nonce
        assert policy.pop("img-src") == policy.pop("connect-src") == "'self'"
        closed = ("default-src", "base-uri", "form-action", "frame-ancestors")
        assert policy == dict.fromkeys(closed, "'none'")
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["x-frame-options"] == "DENY"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert reply.headers["cross-origin-resource-policy"] == "same-origin"
        assert reply.headers["cross-origin-opener-policy"] == "same-origin"
        assert reply.headers["server"] == "clfew"
        assert int(reply.headers["content-length"]) == len(reply.body)


def test_every_page_has_its_own_nonce(site):
    seen = set()
    for _ in range(3):
        reply = site.ask()
        nonce = re.search("script-src 'nonce-([^']+)'", reply.headers["content-security-policy"])[1]
        assert reply.body.decode() == PAGE.replace("__NONCE__", nonce)
        seen.add(nonce)
    assert len(seen) == 3


# What goes wrong inside.


@pytest.mark.parametrize("part", ["do", "state", "picture"])
def test_an_error_inside_is_said_in_the_terminal_once_and_not_to_the_page(site, capsys, part):
    def fail(*arguments):
        raise OSError(5, f"broken {MARK}")

    setattr(site.server, f"_{part}", fail)
    asked = {"do": ("POST", "/do"), "state": ("GET", "/state")}
    asked["picture"] = ("GET", f"/image/{site.server.session}/1")
    for _ in range(3):
        reply = site.ask(*asked[part])
        assert reply.status == 500 and json.loads(reply.body)["ok"] is False
        assert MARK.encode() not in reply.whole and b"OSError" not in reply.whole
    said = capsys.readouterr().err
    assert said.count("OSError") == said.count(MARK) == 1 and "Traceback" not in said
    assert site.ask().status == 200


def test_a_state_that_json_cannot_hold_is_such_an_error(site, capsys):
    site.shown["sure"] = float("nan")
    assert site.ask("GET", "/state").status == 500
    assert "ValueError" in capsys.readouterr().err


def test_a_browser_that_goes_away_is_not_worth_a_word(site, capsys):
    begun, go_on = threading.Event(), threading.Event()

    def do(request):
        begun.set()
        assert go_on.wait(10)
        return site.shown

    site.server._do = do
    connection = site.connect()
    connection.sendall(site.request("POST", "/do"))
    assert begun.wait(10)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()  # With a reset.
    go_on.set()
    until(lambda: not site.server._listener._connections)
    assert site.ask().status == 200
    captured = capsys.readouterr()
    assert captured.err == captured.out == ""


def test_stopping_frees_the_port_ends_the_connections_and_gives_the_answer_under_way(site):
    begun, go_on = threading.Event(), threading.Event()

    def do(request):
        begun.set()
        assert go_on.wait(10)
        return site.shown

    site.server._do = do
    idle, busy = site.connect(), site.connect()
    busy.sendall(site.request("POST", "/do", {"Connection": "keep-alive"}))
    assert begun.wait(10)
    stopping = threading.Thread(target=site.server.stop)
    stopping.start()
    assert idle.recv(10) == b""
    go_on.set()
    assert parsed(rest_of(busy)).status == 200
    stopping.join(10)
    assert not stopping.is_alive() and not site.server._listener._connections
    with pytest.raises(ConnectionError):
        site.connect()
    site.server.stop()  # A second time does nothing.
    idle.close()
    busy.close()


def test_stopping_does_not_wait_for_what_does_not_end(site):
    begun, go_on = threading.Event(), threading.Event()

    def do(request):
        begun.set()
        go_on.wait(30)
        return site.shown

    site.server._do = do
    with site.connect() as connection:
        connection.sendall(site.request("POST", "/do"))
        assert begun.wait(10)
        site.server.stop()
        assert rest_of(connection) == b""
    go_on.set()


def test_a_server_that_was_not_started_can_be_stopped():
    Site().server.stop()
