"""Admission of requests: the token, the limit on clients, and the ban on web pages."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from http import HTTPStatus

from websockets.datastructures import Headers

from sqap_vla_ros.serving.frames import TOKEN_VARIABLE

_SCHEMES = ("Api-Key ", "Bearer ")


@dataclass
class Access:
    """The token that requests must bring, "" for none, and the clients connected now."""

    token: str
    most_clients: int
    clients: int = 0

    def refusal(self, headers: Headers) -> tuple[HTTPStatus, str] | None:
        """Return why a request is refused, or None."""
        if "Origin" in headers:
            # Any web page that its user opens could speak to a server on that user's own computer.
            return HTTPStatus.FORBIDDEN, "web pages may not use this server: the request has an Origin header"
        if not self._authorised(headers):
            lacking = (
                f"a token is needed: set {TOKEN_VARIABLE} to the same on both sides, or send the header Authorization: "
                "Api-Key TOKEN from a client of another kind"
            )
            wrong = f"the token given is not this server's: set {TOKEN_VARIABLE} to the same on both sides"
            return HTTPStatus.UNAUTHORIZED, wrong if _tokens(headers) else lacking
        if self.clients >= self.most_clients:
            return HTTPStatus.SERVICE_UNAVAILABLE, f"{self.most_clients} clients are connected, no more are allowed"
        return None

    def is_client(self, headers: Headers) -> bool:
        """Return whether a request may be told more than whether the server is ready."""
        return "Origin" not in headers and self._authorised(headers)

    def _authorised(self, headers: Headers) -> bool:
        if not self.token:
            return True
        own = self.token.encode()
        return any(hmac.compare_digest(token.encode(errors="surrogatepass"), own) for token in _tokens(headers))


def _tokens(headers: Headers) -> list[str]:
    sent = headers.get_all("Authorization")
    return [value.removeprefix(scheme) for value in sent for scheme in _SCHEMES if value.startswith(scheme)]
