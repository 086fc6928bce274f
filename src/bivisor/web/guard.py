"""Who may ask the page's server for anything: who has the token, from the page itself, under a name that is ours.

The token comes in the address that the command prints and is put into a cookie. A page of another origin cannot read
the cookie (HttpOnly), nor have it sent along (SameSite=Strict), nor open a web socket (`Origin` is compared); a name
that somebody else's name server answers with 127.0.0.1 is not ours (`Host` is compared).
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Middleware

COOKIE = "bivisor"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:;"
    " connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
"""No request leaves the machine, whatever the page is made to contain. The terminal sets styles of its own."""
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Guard:
    """Lets requests through, or answers them with 401 or 403. `names`: the `Host` headers that are ours, with port."""

    def __init__(self, token: str, names: frozenset[str]) -> None:
        self._token = token.encode()
        self._names = names

    @property
    def middleware(self) -> Middleware:
        """What the server asks about each request before anything else."""

        @web.middleware
        async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
            try:
                response = self._refusal(request) or await handler(request)
            except web.HTTPException as error:
                error.headers.update(_HEADERS)
                raise
            if not response.prepared:
                response.headers.update(_HEADERS)
            return response

        return check

    def _refusal(self, request: web.Request) -> web.StreamResponse | None:
        if request.host not in self._names:
            return web.Response(status=403, text=f"this server is not {request.host[:80]}\n")
        origin = request.headers.get("Origin")
        if origin is not None and origin not in {f"http://{name}" for name in self._names}:
            return web.Response(status=403, text="a request of another origin\n")
        changes = request.method not in ("GET", "HEAD") or "Upgrade" in request.headers
        if origin is None and changes and not self._is_bearer(request):
            return web.Response(status=403, text="who changes something says from which origin\n")
        if self._knows(request.query.get("token", "")) and request.path == "/":
            return self._enter()
        if self._knows(request.cookies.get(COOKIE, "")) or self._is_bearer(request):
            return None
        return web.Response(status=401, text="no token: open the address that `bivisor web` printed\n")

    def _is_bearer(self, request: web.Request) -> bool:
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        return kind == "Bearer" and self._knows(token)

    def _knows(self, token: str) -> bool:
        return hmac.compare_digest(token.encode(errors="replace"), self._token)

    def _enter(self) -> web.Response:
        """The token goes from the address, where it would be seen, into the cookie."""
        response = web.Response(status=303, headers={"Location": "/"})
        response.set_cookie(COOKIE, self._token.decode(), httponly=True, samesite="Strict", path="/")
        return response


def new_token() -> str:
    """A token that nobody guesses."""
    return secrets.token_urlsafe(24)
