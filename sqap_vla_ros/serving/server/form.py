"""The form of a `POST`: a picture, and a JSON object with the instruction. No sockets here.

The standard library reads forms as mail, line by line and forms within forms. Here a form is split at its boundary and
no further, so that nothing a client sends takes longer than its bytes take to search.
"""

from __future__ import annotations

import json
import re
from http import HTTPStatus
from typing import Any

from sqap_vla_ros.serving.server.requests import HttpError
from sqap_vla_ros.serving.server.words import listed

MAX_PARTS = 16
MAX_PART_HEAD = 4_096  # bytes
MAX_QUERY = 65_536  # bytes of the JSON object
_PARTS = {"picture": ("images", "image"), "JSON object": ("json", "query")}  # -> names, CogACT's own first
_BOUNDARY = re.compile(r';\s*boundary=(?:"([^"]+)"|([^\s;"]+))', re.IGNORECASE)
_DISPOSITION = re.compile(r"^content-disposition:\s*form-data((?:\r\n[ \t]|.)*)$", re.IGNORECASE | re.MULTILINE)
_PARAMETER = re.compile(r';\s*([\w*-]+)\s*=\s*(?:"((?:\\.|[^"\\])*)"|([^\s;"]*))')
_CODED = re.compile(r"^content-transfer-encoding:\s*(?!binary|7bit|8bit)", re.IGNORECASE | re.MULTILINE)


def read_form(content_type: str, body: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the JSON object and the picture's bytes of a multipart form. Raises HttpError."""
    if not content_type.lower().startswith("multipart/form-data"):
        raise HttpError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body must be multipart/form-data: images and json")
    if (named := _BOUNDARY.search(content_type)) is None:
        raise _unreadable("the Content-Type names no boundary between the form's parts")
    parts = _parts(body, (named[1] or named[2]).encode("latin-1"))
    found = []
    sent = [name for name, _ in parts]
    for what, names in _PARTS.items():
        fitting = [(name, content) for name, content in parts if name in names]
        if not fitting:
            raise _unreadable(f"the form lacks the part {names[0]!r}: got {listed(sent)}")
        if len(fitting) > 1:
            several = listed([name for name, _ in fitting])
            raise _unreadable(f"the form has {len(fitting)} parts for one {what}, {several}: send one of them")
        found.append(fitting[0][1])
    picture, query = found
    return _json_object(query), picture


def _parts(body: bytes, boundary: bytes) -> list[tuple[str, bytes]]:
    """Return names and contents in the order in which they came. Raises HttpError."""
    body = b"\r\n" + body
    delimiter = re.compile(rb"\r\n--" + re.escape(boundary) + rb"(?:(--)|[ \t]*\r\n)")
    parts: list[tuple[str, bytes]] = []
    before = delimiter.search(body)
    while before is not None and not before[1]:
        after = delimiter.search(body, before.end() - 2)  # a part may be empty: its line's end is the next one's begin
        if after is None:
            break
        parts.append(_part(body[before.end() : after.start()]))
        if len(parts) > MAX_PARTS:
            raise _unreadable(f"the form has more than {MAX_PARTS} parts")
        before = after
    if before is None:
        raise _unreadable("the form lacks the part 'images': its boundary does not occur in the body")
    if not before[1]:
        raise _unreadable("the form does not end with its boundary: it was cut off")
    return parts


def _part(part: bytes) -> tuple[str, bytes]:
    """Return name and content, "" for a part without a name. Raises HttpError."""
    end = part.find(b"\r\n\r\n", 0, MAX_PART_HEAD)
    if end < 0:
        raise _unreadable(f"a part of the form has no empty line after its headers, of at most {MAX_PART_HEAD} bytes")
    head = part[:end].decode("latin-1")
    if _CODED.search(head):
        raise _unreadable(
            "a part of the form is encoded: send its bytes as they are, without Content-Transfer-Encoding"
        )
    disposition = _DISPOSITION.search(head)
    for key, inside, bare in _PARAMETER.findall(disposition[1]) if disposition else ():
        if key.lower() == "name":
            return re.sub(r"\\(.)", r"\1", inside) or bare, part[end + 4 :]
    return "", part[end + 4 :]


def _json_object(query: bytes) -> dict[str, Any]:
    if len(query) > MAX_QUERY:
        raise _unreadable(f"the part 'json' has {len(query)} bytes, at most {MAX_QUERY} are allowed")
    try:
        values = json.loads(query.decode())
    except json.JSONDecodeError as error:
        raise _no_json(f"{error.msg} in line {error.lineno}, column {error.colno}") from error
    except UnicodeDecodeError as error:
        raise _no_json("it is no text in UTF-8") from error
    except RecursionError as error:
        raise _no_json("it is nested too deeply") from error
    except ValueError as error:
        raise _no_json("a number in it is too long") from error
    if not isinstance(values, dict):
        raise _unreadable("the part 'json' must be an object with task_description")
    return values


def _no_json(why: str) -> HttpError:
    return _unreadable(f"the part 'json' is no JSON: {why}")


def _unreadable(why: str) -> HttpError:
    return HttpError(HTTPStatus.UNPROCESSABLE_ENTITY, why)
