"""Numbers and structures of the remote framebuffer protocol (RFC 6143; extensions: rfbproto.rst of the RFB community).

Sections: 7.1 handshake, 7.3 initialisation, 7.4 pixel format, 7.5 messages of the client, 7.6 of the server, 7.7
encodings, 7.8 pseudo-encodings. All numbers are big-endian.
"""

from __future__ import annotations

import struct
from typing import Final

# 7.1.1 ProtocolVersion
VERSIONS: Final = {b"RFB 003.003\n": (3, 3), b"RFB 003.007\n": (3, 7), b"RFB 003.008\n": (3, 8)}
VERSION: Final = b"RFB 003.008\n"

# 7.1.2 Security; rfbproto "VeNCrypt"
SECURITY_INVALID: Final = 0
SECURITY_NONE: Final = 1
SECURITY_VNC: Final = 2
SECURITY_VENCRYPT: Final = 19
VENCRYPT_VERSION: Final = b"\0\2"
VENCRYPT_X509_NONE: Final = 260
VENCRYPT_X509_VNC: Final = 261
CHALLENGE_BYTES: Final = 16
PASSWORD_BYTES: Final = 8
RESULT_OK: Final = 0
RESULT_FAILED: Final = 1

# 7.4: bits, depth, big-endian, true colour, maxima of red, green and blue, their shifts, padding
PIXEL_FORMAT: Final = struct.Struct(">BBBBHHHBBB3x")
SERVER_INIT: Final = struct.Struct(">HH16sI")

# 7.5
SET_PIXEL_FORMAT: Final = 0
SET_ENCODINGS: Final = 2
UPDATE_REQUEST: Final = 3
KEY_EVENT: Final = 4
POINTER_EVENT: Final = 5
CLIENT_CUT_TEXT: Final = 6
QEMU: Final = 255
QEMU_KEY: Final = 0
UPDATE_REQUEST_BODY: Final = struct.Struct(">BHHHH")
KEY_EVENT_BODY: Final = struct.Struct(">B2xI")
POINTER_EVENT_BODY: Final = struct.Struct(">BHH")
QEMU_KEY_BODY: Final = struct.Struct(">HII")

# 7.6
UPDATE: Final = 0
SET_COLOUR_MAP: Final = 1
UPDATE_HEADER: Final = struct.Struct(">BxH")
RECTANGLE: Final = struct.Struct(">HHHHi")
COLOUR_MAP_HEADER: Final = struct.Struct(">BxHH")

# 7.7 and 7.8
RAW: Final = 0
COPY_RECT: Final = 1
HEXTILE: Final = 5
TIGHT: Final = 7
ZRLE: Final = 16
DESKTOP_SIZE: Final = -223
POINTER_CHANGE: Final = -257
EXTENDED_KEY: Final = -258

# 7.7.4 Hextile
HEXTILE_RAW: Final = 1
HEXTILE_BACKGROUND: Final = 2
HEXTILE_FOREGROUND: Final = 4
HEXTILE_SUBRECTS: Final = 8

# rfbproto "Tight Encoding"
TIGHT_FILL: Final = 0x80
TIGHT_EXPLICIT_FILTER: Final = 0x40
TIGHT_FILTER_PALETTE: Final = 1
TIGHT_UNCOMPRESSED_MAX: Final = 11
TIGHT_WIDTH_MAX: Final = 2048

# 7.7.6 ZRLE
ZRLE_TILE: Final = 64
ZRLE_RAW: Final = 0
ZRLE_SOLID: Final = 1
ZRLE_TWO_COLOURS: Final = 2
