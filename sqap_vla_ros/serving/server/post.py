"""A `POST` request, read as its bytes come, and the form in its body. No sockets here."""

from __future__ import annotations

import email.parser
import email.policy
import json
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from websockets.datastructures import Headers
from websockets.exceptions import InvalidHeader

MAX_HEAD = 16_384  # bytes of a request's line and headers
_END = b"\r\n\r\n"
_PARTS = (("images", "image"), ("json", "query"))  # names of the picture and of the JSON object, CogACT's own first


class HttpError(Exception):
    """A request that is answered with a status and a sentence."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


class PostReader:
    """Collects the bytes of one request."""

    def __init__(self, max_body: int) -> None:
        self.path = ""
        self.headers: Headers | None = None  # once they are complete
        self._max_body = max_body
        self._bytes = bytearray()
        self._length = 0

    def feed(self, data: bytes) -> bool:
        """Take in what arrived; return whether the request is complete. Raises HttpError."""
        self._bytes += data
        if self.headers is None:
            end = self._bytes.find(_END, 0, MAX_HEAD)
            if end < 0:
                if len(self._bytes) > MAX_HEAD:
                    raise HttpError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"the headers exceed {MAX_HEAD} bytes")
                return False
            self._read_head(bytes(self._bytes[:end]))
            del self._bytes[: end + len(_END)]
        return len(self._bytes) >= self._length

    def form(self) -> tuple[dict[str, Any], bytes]:
        """Return the JSON object and the picture's bytes of a complete request. Raises HttpError."""
        assert self.headers is not None
        kinds = self.headers.get_all("Content-Type")
        if len(kinds) > 1:
            raise HttpError(HTTPStatus.BAD_REQUEST, "the request has more than one Content-Type")
        return read_form("".join(kinds), bytes(self._bytes[: self._length]))

    def _read_head(self, head: bytes) -> None:
        line, _, rest = head.decode("latin-1").partition("\r\n")
        words = line.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            raise HttpError(HTTPStatus.BAD_REQUEST, f"no HTTP request line: {line[:100]!r}")
        self.path = urlsplit(words[1]).path
        self.headers = Headers()
        for entry in rest.split("\r\n") if rest else ():
            name, separator, value = entry.partition(":")
            if not separator or not name.strip():
                raise HttpError(HTTPStatus.BAD_REQUEST, f"no HTTP header: {entry[:100]!r}")
            try:
                self.headers[name.strip()] = value.strip()
            except InvalidHeader as error:
                raise HttpError(HTTPStatus.BAD_REQUEST, f"no HTTP header: {entry[:100]!r}") from error
        lengths = set(self.headers.get_all("Content-Length"))
        if len(lengths) != 1 or not (length := lengths.pop()).isdecimal():
            raise HttpError(HTTPStatus.LENGTH_REQUIRED, "the request needs one Content-Length")
        if len(length) > 12 or int(length) > self._max_body:
            raise HttpError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body exceeds {self._max_body} bytes")
        self._length = int(length)


def read_form(content_type: str, body: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the JSON object and the picture's bytes of a multipart form. Raises HttpError."""
    if not content_type.lower().startswith("multipart/form-data"):
        raise HttpError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body must be multipart/form-data: images and json")
    head = b"Content-Type: " + content_type.encode("latin-1", errors="replace") + _END
    form = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
    parts: dict[str, bytes] = {}
    for part in form.iter_parts() if form.is_multipart() else ():
        payload = part.get_payload(decode=True)
        if isinstance(payload, bytes):
            parts[str(part.get_param("name", header="content-disposition"))] = payload
    found = []
    for names in _PARTS:
        name = next((name for name in names if name in parts), None)
        if name is None:
            raise HttpError(HTTPStatus.UNPROCESSABLE_ENTITY, f"the form lacks the part {names[0]!r}")
        found.append(parts[name])
    picture, query = found
    try:
        values = json.loads(query)
    except (ValueError, RecursionError) as error:
        raise HttpError(HTTPStatus.UNPROCESSABLE_ENTITY, f"the part 'json' is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise HttpError(HTTPStatus.UNPROCESSABLE_ENTITY, "the part 'json' must be an object with task_description")
    return values, picture
