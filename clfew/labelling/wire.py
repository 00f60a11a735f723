"""The requests and answers of `clfew label`: which are refused, and how both are written as bytes."""

import html
import json
import math
import re
import secrets
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from typing import Any

MOST_LINE = 8 * 2**10
MOST_HEADERS = 16 * 2**10
"""Bytes of all headers of a request together."""
MOST_ROWS = 64
MOST_BODY = 64 * 2**10
MOST_DEPTH = 8
"""Lists and objects of a request inside each other; those of the page are three."""

_LINE = re.compile(rb"([A-Z-]{1,32}) ([!-~]+) HTTP/1\.([01])")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([\t -~\x80-\xff]*)")
_HOST = re.compile(r"(?:127\.0\.0\.1|localhost)(?::([0-9]{1,5}))?", re.IGNORECASE)
TEXT, HTML = "text/plain; charset=utf-8", "text/html; charset=utf-8"
_POLICY = (
    "default-src 'none'; img-src 'self'; style-src 'nonce-{0}'; script-src 'nonce-{0}'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_ALWAYS = """Server: clfew
X-Content-Type-Options: nosniff
X-Frame-Options: DENY
Referrer-Policy: no-referrer
Cross-Origin-Resource-Policy: same-origin
Cross-Origin-Opener-Policy: same-origin""".splitlines()
_WORDS = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>clfew label</title>
<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">
"""
# Not a redirect: where a link on another site (a terminal in the browser) began the visit, the browser
# sends no SameSite=Strict cookie on a redirect, but it does when this page itself goes on.
GO_ON = f"""{_WORDS}<meta http-equiv="refresh" content="0; url=/"></head>
<body><p><a href="/">Go on to the page</a></p></body></html>"""


class Refused(Exception):
    """A request that cannot be done. status: of HTTP, 400 to 599. sentence, hint: for the person."""

    def __init__(self, status: int, sentence: str, hint: str = "") -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.hint = status, sentence, hint


@dataclass(frozen=True)
class Request:
    """A request's line and headers, as they were sent: nothing in them is decoded."""

    method: str
    target: str
    is_old: bool
    """Whether it is HTTP/1.0."""
    headers: dict[str, list[str]]
    """By names in small letters."""

    def only(self, name: str) -> str | None:
        """Returns the value of a header, None without one. Raises Refused if it is there twice."""
        values = self.headers.get(name, [])
        if len(values) > 1:
            raise Refused(400, "A header is there twice.")
        return values[0] if values else None

    def keeps_connection(self) -> bool:
        """Returns whether another request may follow on its connection."""
        return not self.is_old and "close" not in ",".join(self.headers.get("connection", [])).lower()


@dataclass(frozen=True)
class Answer:
    """An answer. kind: its MIME type. headers: those that not every answer has. nonce: of its policy."""

    status: int
    kind: str
    body: bytes
    headers: tuple[str, ...] = ("Cache-Control: no-store",)
    nonce: str = field(default_factory=lambda: secrets.token_urlsafe(16))


def check_head(received: bytes) -> None:
    """Raises Refused if what has come of a request is too long, or can be no request any more."""
    line, end, headers = received.partition(b"\r\n")
    if len(line) > MOST_LINE:
        raise Refused(414, "The address is too long.")
    if len(headers) > MOST_HEADERS or headers.rstrip().count(b"\n") >= MOST_ROWS:
        raise Refused(431, "The headers are too long.")
    if (end and not _LINE.fullmatch(line)) or re.search(rb"(?<!\r)\n", received):
        raise Refused(400, "This is not a request of HTTP/1.1.")


def parsed(head: bytes) -> Request:
    """Returns the request with a line and headers. Raises Refused if it is not HTTP/1.1."""
    check_head(head)
    line, *rows = head.split(b"\r\n")
    found = _LINE.fullmatch(line)
    headers: dict[str, list[str]] = {}
    for row in rows:
        if not (match := _FIELD.fullmatch(row)):
            raise Refused(400, "A line is not a header.")
        value = match[2].strip(b" \t").decode("latin-1")
        headers.setdefault(match[1].decode().lower(), []).append(value)
    if not found:
        raise Refused(400, "This is not a request of HTTP/1.1.")
    return Request(found[1].decode(), found[2].decode(), found[3] == b"0", headers)


def host_of(request: Request) -> re.Match[str]:
    """Returns the name and port by which the browser came; the port is another one through `ssh -L`.

    Raises Refused for any other name: one of another site may have been rebound to this machine, whose
    pages the browser then takes for that site's own.
    """
    hosts = request.headers.get("host", [])
    found = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
    if not found:
        raise Refused(403, "This server is at 127.0.0.1 and localhost only.")
    return found


def cookie_name(request: Request) -> str:
    """Returns the name of the cookie of the page that a browser asks for."""
    # Cookies of all ports of a host are kept together, so two pages need two names, also where both come
    # through a tunnel from the same port of two machines.
    return f"clfew-{host_of(request)[1] or 80}"


def check_form(request: Request) -> None:
    """Raises Refused for methods, targets and bodies that the page has no use for."""
    if request.method not in ("GET", "POST"):
        raise Refused(405, "This cannot be asked for in this way.")
    if not request.target.startswith("/"):
        raise Refused(400, "The address is not a path.")
    has_body = request.method == "GET" and request.only("content-length") not in (None, "0")
    if has_body or "transfer-encoding" in request.headers:
        raise Refused(400, "A body cannot be sent in this way.")


def length_of(request: Request) -> int:
    """Returns the length of a decision's body. Raises Refused for what another site's page can send."""
    if (request.only("origin") or "").lower() != f"http://{request.only('host')}".lower():
        raise Refused(403, "Another page sent this.", "open the page by its own address.")
    kind = (request.only("content-type") or "").partition(";")[0]
    if kind.strip().lower() != "application/json":
        raise Refused(415, "This is not JSON.")
    if (request.only("expect") or "100-continue").lower() != "100-continue":
        raise Refused(417, "Only 100-continue can be expected.")
    length = request.only("content-length")
    if length is None:
        raise Refused(411, "The length is missing.")
    if not re.fullmatch("[0-9]+", length):
        raise Refused(400, "The length is not a number.")
    if len(length) > 9 or int(length) > MOST_BODY:
        raise Refused(413, "This is too long.")
    return int(length)


def json_object(body: bytes) -> dict[str, Any]:
    """Returns the JSON object of a request, without numbers that are infinite or have over 18 digits."""

    def integer(text: str) -> int:
        if len(text) > 19:
            raise ValueError
        return int(text)

    def finite(text: str) -> float:
        if not math.isfinite(number := float(text)):
            raise ValueError
        return number

    try:
        value = json.loads(body.decode(), parse_int=integer, parse_float=finite, parse_constant=finite)
    except (ValueError, RecursionError):
        value = None
    level: list[Any] = [value]
    for _ in range(MOST_DEPTH):
        nested = [outer for outer in level if isinstance(outer, (dict, list))]
        level = [v for outer in nested for v in (outer.values() if isinstance(outer, dict) else outer)]
    if level or not isinstance(value, dict):
        raise Refused(400, "This is not a JSON object.")
    return value


def json_answer(status: int, value: dict[str, Any]) -> Answer:
    """Returns an answer in JSON. Raises ValueError for numbers that JSON has not."""
    # In ASCII, as names can hold halves of surrogate pairs. "<" is in strings only.
    text = json.dumps(value, ensure_ascii=True, allow_nan=False).replace("<", "\\u003c")
    return Answer(status, "application/json", text.encode())


def refusal_answer(refusal: Refused, target: str | None) -> Answer:
    """Returns the answer to a refused request: a page where one was asked for, else JSON.

    target: the request's, None for one that may not come from a browser at all; it is answered in text.
    """
    if target is None:
        answer = Answer(refusal.status, TEXT, refusal.sentence.encode())
    elif target.partition("?")[0] == "/":
        hint = refusal.hint[:1].upper() + refusal.hint[1:]
        words = f"<p>{html.escape(refusal.sentence)}</p><p>{html.escape(hint)}</p>"
        page = f"{_WORDS}</head><body>{words}</body></html>"
        answer = Answer(refusal.status, HTML, page.encode())
    else:
        said = {"ok": False, "error": refusal.sentence, "hint": refusal.hint}
        answer = json_answer(refusal.status, said)
    allow = ("Allow: GET, POST",) if refusal.status == 405 else ()
    return replace(answer, headers=(*answer.headers, *allow))


def rendered(answer: Answer, is_kept: bool, is_head: bool = False) -> bytes:
    """Returns an answer as it is sent. is_head: without its body."""
    phrase = BaseHTTPRequestHandler.responses.get(answer.status, ("Refused",))[0]
    body = b"" if is_head else answer.body
    lines = [
        f"HTTP/1.1 {answer.status} {phrase}",
        f"Date: {formatdate(usegmt=True)}",
        f"Content-Type: {answer.kind}",
        f"Content-Length: {len(body)}",
        f"Connection: {'keep-alive' if is_kept else 'close'}",
        f"Content-Security-Policy: {_POLICY.format(answer.nonce)}",
        *_ALWAYS,
        *answer.headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body
