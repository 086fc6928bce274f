"""A server's side of the remote framebuffer protocol (VNC), without sockets: bytes are fed in and taken out.

`Session` is one client's; `Screen` and `Controls` are what it shows and works. Who has a socket, a web page's or one of
TCP, moves the bytes.
"""

from bivisor.vnc.contract import Controls, ProtocolError, Screen
from bivisor.vnc.security import Guard, Security
from bivisor.vnc.session import Session

__all__ = ["Controls", "Guard", "ProtocolError", "Screen", "Security", "Session"]
