"""An HTTP request, read as its bytes come. No sockets here.

The websocket library reads what `GET` asks for by itself, but closes connections without a word where a request is
malformed. So every head is read here first, as strictly as there.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from urllib.parse import urlsplit

from websockets.datastructures import Headers

MAX_HEAD = 16_384  # bytes of a request's line and headers
_END = b"\r\n\r\n"
_LINE = re.compile(r"([!-~]+) ([!-~]+) HTTP/1\.[01]")
_NAME = re.compile(r"[-!#$%&'*+.^_`|~0-9a-zA-Z]+")
_VALUE = re.compile(r"[\t -~\x80-\xff]*")


class HttpError(Exception):
    """A request that is answered with a status and a sentence. allow: the methods that are taken, "" for any."""

    def __init__(self, status: HTTPStatus, text: str, *, allow: str = "") -> None:
        super().__init__(text)
        self.status, self.allow = status, allow


class RequestReader:
    """Collects the bytes of one request. method, path: "" until its head is complete; headers: None until then."""

    def __init__(self, max_body: int) -> None:
        self.method = self.path = ""
        self.headers: Headers | None = None
        self._max_body = max_body
        self._bytes = bytearray()
        self._body = 0  # where it begins
        self._length = 0

    @property
    def received(self) -> bytes:
        """All that came."""
        return bytes(self._bytes)

    @property
    def body(self) -> bytes:
        """The body of a complete request."""
        return bytes(self._bytes[self._body : self._body + self._length])

    def feed(self, data: bytes) -> bool:
        """Take in what arrived; return whether the request is complete. Raises HttpError."""
        self._bytes += data
        if self.headers is None:
            end = self._bytes.find(_END, 0, MAX_HEAD)
            if end < 0:
                if len(self._bytes) > MAX_HEAD:
                    raise HttpError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"the headers exceed {MAX_HEAD} bytes")
                if not _may_begin_a_request(self._bytes):
                    raise HttpError(
                        HTTPStatus.BAD_REQUEST, "the first bytes are no HTTP request; TLS is not spoken here"
                    )
                return False
            self._body = end + len(_END)
            self._read_head(self._bytes[:end].decode("latin-1"))
        return len(self._bytes) - self._body >= self._length

    def missing(self) -> str:
        """Return what an incomplete request lacks."""
        if self.headers is None:
            return "its headers are not complete"
        return f"{len(self._bytes) - self._body} of the {self._length} bytes of its body came"

    def _read_head(self, head: str) -> None:
        line, _, rest = head.partition("\r\n")
        if (words := _LINE.fullmatch(line)) is None:
            raise HttpError(HTTPStatus.BAD_REQUEST, f"no HTTP request line: {line[:100]!r}")
        try:
            path = urlsplit(words[2]).path
        except ValueError as error:
            raise HttpError(HTTPStatus.BAD_REQUEST, f"no address: {words[2][:100]!r}") from error
        headers = Headers()
        for entry in rest.split("\r\n") if rest else ():
            name, separator, value = entry.partition(":")
            if not separator or not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
                raise HttpError(HTTPStatus.BAD_REQUEST, f"no HTTP header: {entry[:100]!r}")
            headers[name] = value.strip(" \t")
        if words[1] not in ("GET", "HEAD", "POST"):
            raise HttpError(
                HTTPStatus.METHOD_NOT_ALLOWED, f"GET or POST is needed, got {words[1][:20]}", allow="GET, HEAD, POST"
            )
        if "Transfer-Encoding" in headers:
            refused = "Transfer-Encoding is not understood: send the body as it is, with its Content-Length"
            raise HttpError(HTTPStatus.NOT_IMPLEMENTED, refused)
        self._length = self._announced(set(headers.get_all("Content-Length")), words[1])
        self.method, self.path, self.headers = words[1], path, headers

    def _announced(self, lengths: set[str], method: str) -> int:
        """Return how long the body is. Raises HttpError."""
        if method != "POST":
            if lengths <= {"0"}:
                return 0
            raise HttpError(HTTPStatus.BAD_REQUEST, f"a {method} has no body")
        if len(lengths) != 1 or not (length := lengths.pop()).isdecimal():
            raise HttpError(HTTPStatus.LENGTH_REQUIRED, "the request needs one Content-Length")
        if len(length) > 12 or int(length) > self._max_body:
            refused = f"the body has {length[:20]} bytes, at most {self._max_body} are allowed"
            raise HttpError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, refused)
        return int(length)


def _may_begin_a_request(data: bytearray) -> bool:
    """Return whether a request's line can begin like this: with a word of letters."""
    word = data[:20].partition(b" ")[0]
    return len(word) < 20 and bytes(word).isalpha()
