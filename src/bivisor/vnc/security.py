"""Who may look: a password, which the client proves to know by encrypting a challenge with it, and TLS around it all.

The proof is DES with the first eight bytes of the password, the bits of each in reverse order (RFC 6143, 7.2.2). That
is weak: it keeps people of the same host out, and everybody else only where TLS is around it.
"""

from __future__ import annotations

import hmac
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from bivisor.abi import rfb


class Guard:
    """Keeps whoever guesses passwords waiting, on all connections of a server: a second at first, then twice as long,
    up to a minute. `clock` gives seconds."""

    _FIRST, _LONGEST = 1.0, 60.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pause = self._FIRST
        self._until = 0.0

    def allows(self) -> bool:
        """Whether somebody may try now."""
        return self._clock() >= self._until

    def failed(self) -> None:
        """A wrong password was told."""
        self._until = self._clock() + self._pause
        self._pause = min(2 * self._pause, self._LONGEST)

    def succeeded(self) -> None:
        """The right one was."""
        self._pause = self._FIRST


@dataclass(frozen=True, slots=True)
class Security:
    """No `password`: whoever can connect may look and type. `tls` makes everything after the handshake secret."""

    password: bytes | None = None
    tls: ssl.SSLContext | None = None
    guard: Guard = field(default_factory=Guard)

    @property
    def kind(self) -> int:
        """The security type that clients are offered; there is one, so nobody can choose a weaker one."""
        if self.tls is not None:
            return rfb.SECURITY_VENCRYPT
        return rfb.SECURITY_NONE if self.password is None else rfb.SECURITY_VNC

    @property
    def subtype(self) -> int:
        """Likewise, of VeNCrypt."""
        return rfb.VENCRYPT_X509_NONE if self.password is None else rfb.VENCRYPT_X509_VNC

    def proves(self, challenge: bytes, response: bytes) -> bool:
        """Whether `response` was made with the password. The guard hears of it."""
        assert self.password is not None
        if not self.guard.allows():
            return False
        is_right = hmac.compare_digest(response, answer(self.password, challenge))
        (self.guard.succeeded if is_right else self.guard.failed)()
        return is_right


def answer(password: bytes, challenge: bytes) -> bytes:
    """What a client that knows `password` makes of `challenge`."""
    from Crypto.Cipher import DES

    key = password[: rfb.PASSWORD_BYTES].ljust(rfb.PASSWORD_BYTES, b"\0")
    reversed_bits = bytes(int(f"{byte:08b}"[::-1], 2) for byte in key)
    return DES.new(reversed_bits, DES.MODE_ECB).encrypt(challenge)


class TlsPipe:
    """The server's end of TLS between bytes that come from a wire and bytes that go there."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._is_open = False
        self._early = bytearray()

    def feed(self, data: bytes) -> bytes:
        """What `data` of the wire says. ssl.SSLError."""
        self._incoming.write(data)
        plain = bytearray()
        try:
            if not self._is_open:
                self._tls.do_handshake()
                self._is_open = True
                if self._early:
                    self._tls.write(self._early)
            while piece := self._tls.read(1 << 16):
                plain += piece
        except ssl.SSLWantReadError:
            pass
        return bytes(plain)

    def write(self, data: bytes) -> None:
        """Say `data`, once the handshake is over."""
        if self._is_open:
            self._tls.write(data)
        else:
            self._early += data

    def take(self) -> bytes:
        """What is to go to the wire."""
        return self._outgoing.read()
