"""The syntax of xl.cfg(5): assignments of strings, numbers and lists, separated by newlines or semicolons.

Nothing here knows what a key means. Every value keeps the place where it was written, so that whoever does can say so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from bivisor.errors import UsageError

DEPTH_MAX = 16
"""Lists in lists; no key has more than two."""

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\f]+|\#[^\n]*)
      | (?P<newline>\n)
      | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<number>[-+]?(?:0[xX][0-9a-fA-F]+|[0-9]+)(?![A-Za-z0-9_.]))
      | (?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
      | (?P<mark>\+=|[=\[\],;])""",
    re.VERBOSE,
)
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|[0-7]{1,3}|.)", re.DOTALL)
_ESCAPES = {
    "a": "\a",
    "b": "\b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
    "v": "\v",
    "\\": "\\",
    '"': '"',
    "'": "'",
}


@dataclass(frozen=True, slots=True)
class Place:
    """A line of a source (a file's name, or what else was parsed)."""

    source: str
    line: int

    def __str__(self) -> str:
        return f"{self.source}:{self.line}"

    def error(self, words: str) -> ConfigError:
        """An error about what is here."""
        return ConfigError(self, words)


class ConfigError(UsageError):
    """What is wrong in a configuration, and where."""

    def __init__(self, place: Place, words: str) -> None:
        super().__init__(f"{place}: {words}")
        self.place = place
        self.words = words


Plain = str | int | list["Plain"]


@dataclass(frozen=True, slots=True)
class Value:
    """What was assigned: a string, a number or a list of values, and where."""

    place: Place
    content: str | int | tuple[Value, ...]

    @property
    def plain(self) -> Plain:
        """The content without places."""
        if isinstance(self.content, tuple):
            return [value.plain for value in self.content]
        return self.content


@dataclass(frozen=True, slots=True)
class Assignment:
    """`key = value`, or `key += value` where it `extends`."""

    place: Place
    key: str
    value: Value
    extends: bool = False


def parse(text: str, source: str) -> dict[str, Value]:
    """The keys of `text` with their values; the last assignment of a key counts, and += adds to a list or string.

    UsageError with the place of the first thing that is wrong.
    """
    found: dict[str, Value] = {}
    for each in _Parser(text, source).assignments():
        old = found.get(each.key)
        found[each.key] = _extended(old, each) if each.extends and old is not None else each.value
    return found


def _extended(old: Value, new: Assignment) -> Value:
    match old.content, new.value.content:
        case (tuple() as first, tuple() as second):
            return Value(old.place, first + second)
        case (str() as first, str() as second):
            return Value(old.place, first + second)
        case _:
            raise new.place.error(f"{new.key} += adds a list to a list or a string to a string")


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    place: Place

    def __str__(self) -> str:
        return {"newline": "the end of the line", "end": "the end"}.get(self.kind, self.text)


class _Parser:
    def __init__(self, text: str, source: str) -> None:
        self._source = source
        self._tokens = self._scan(text)
        self._next = next(self._tokens)

    def _scan(self, text: str) -> Iterator[_Token]:
        at, line = 0, 1
        while at < len(text):
            found = _TOKEN.match(text, at)
            place = Place(self._source, line)
            if found is None:
                raise place.error(_unreadable(text[at:].partition("\n")[0]))
            kind = found.lastgroup or ""
            if kind != "space":
                yield _Token(kind, found[0], place)
            line += found[0].count("\n")
            at = found.end()
        yield _Token("end", "", Place(self._source, line))

    def _take(self) -> _Token:
        taken = self._next
        if taken.kind != "end":
            self._next = next(self._tokens)
        return taken

    def _skip_newlines(self) -> None:
        while self._next.kind == "newline":
            self._take()

    def assignments(self) -> Iterator[Assignment]:
        while True:
            while self._next.kind == "newline" or self._next.text == ";":
                self._take()
            if self._next.kind == "end":
                return
            yield self._assignment()

    def _assignment(self) -> Assignment:
        key = self._take()
        if key.kind != "name":
            raise key.place.error(f"{key} where the name of a key is expected, as in memory=512")
        mark = self._take()
        if mark.text not in ("=", "+="):
            raise mark.place.error(f"{mark} after {key.text}, where = is expected")
        value = self._value(0)
        end = self._next
        if end.kind not in ("newline", "end") and end.text != ";":
            raise end.place.error(f"{end} after the value of {key.text}: the next key goes on a new line or after ;")
        return Assignment(key.place, key.text, value, mark.text == "+=")

    def _value(self, depth: int) -> Value:
        token = self._take()
        match token.kind:
            case "string":
                return Value(token.place, _unquoted(token))
            case "number":
                return Value(token.place, number(token.text))
            case "mark" if token.text == "[" and depth < DEPTH_MAX:
                return Value(token.place, tuple(self._items(depth + 1)))
            case "name":
                raise token.place.error(f'{token}: a string goes in quotes, as in "{token}"')
        raise token.place.error(f"{token} where a value is expected: a string in quotes, a number or a [list]")

    def _items(self, depth: int) -> Iterator[Value]:
        while True:
            self._skip_newlines()
            if self._next.text == "]":
                break
            yield self._value(depth)
            self._skip_newlines()
            if self._next.text != ",":
                break
            self._take()
        end = self._take()
        if end.text != "]":
            raise end.place.error(f"{end} in a list, where , or ] is expected")


def _unreadable(rest: str) -> str:
    if rest[0] in "\"'":
        return f"the string {rest[:40]} does not end on its line"
    return f"{rest[:40]!r} is neither a name, a number nor a string in quotes"


def number(text: str) -> int:
    """A number as in C: decimal, 0x… or, with a leading 0, octal. ValueError."""
    digits = text.lstrip("+-")
    base = 16 if digits[:2] in ("0x", "0X") else 8 if digits[:1] == "0" and len(digits) > 1 else 10
    try:
        return int(text, base)
    except ValueError:
        return int(text)


def _unquoted(token: _Token) -> str:
    def escaped(found: re.Match[str]) -> str:
        text = found[1]
        if text[0] == "x" and len(text) == 3:
            return chr(int(text[1:], 16))
        if text[0] in "01234567":
            return chr(int(text, 8) & 0xFF)
        if text not in _ESCAPES:
            raise token.place.error(f"\\{text} in {token.text[:40]}: a backslash itself is written \\\\")
        return _ESCAPES[text]

    content = _ESCAPE.sub(escaped, token.text[1:-1])
    if "\0" in content:
        raise token.place.error(f"{token.text[:40]}: a string has no zero byte")
    return content
