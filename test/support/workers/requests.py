"""Plain HTTP to a policy server."""

import io
import urllib.error
import urllib.request

import numpy as np
from PIL import Image

IMAGE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
TIMEOUT_S = 30.0
_DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever proxy the environment names


def get(served, path, **headers):
    """Status and body."""
    request = urllib.request.Request(served.url.replace("ws", "http") + path, headers=headers)
    return _answer(request)


def post(served, path, body, kind="multipart/form-data; boundary=XX", **headers):
    headers = {"Content-Type": kind, **headers}
    return _answer(urllib.request.Request(served.url.replace("ws", "http") + path, body, headers))


def _answer(request):
    try:
        with _DIRECTLY.open(request, timeout=TIMEOUT_S) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def form(image: bytes, query: bytes) -> bytes:
    parts = (("images", image), ("json", query))
    head = 'Content-Disposition: form-data; name="{}"; filename="f"\r\n\r\n'
    return b"".join(b"--XX\r\n" + head.format(n).encode() + d + b"\r\n" for n, d in parts) + b"--XX--\r\n"


def picture() -> bytes:
    file = io.BytesIO()
    Image.fromarray(IMAGE).save(file, "PNG")
    return file.getvalue()
