"""One string <-> words, by the rules of the Microsoft C runtime (C1.1 Command line).

The existing node hands its `Arguments` to .NET's process start, which splits by these rules on every platform.
Never a shell: no expansion, no wildcards, no escapes but these.

- Words are separated by spaces and tabs outside double quotes.
- 2n backslashes before a quote are n backslashes, and the quote opens or closes a quoted part.
- 2n+1 backslashes before a quote are n backslashes and a plain quote.
- Backslashes anywhere else are plain.
- Two quotes inside a quoted part are one plain quote.
"""

import re
from collections.abc import Iterable
from typing import Final

_BLANKS: Final = " \t"
_PIECE: Final = re.compile(r'(\\*)"|[ \t]+|[^\\" \t]+|\\+')
"""A quote with the backslashes before it, blanks, plain letters, or plain backslashes."""


def split(text: str) -> tuple[str, ...]:
    """The words of a command line; the inverse of `join`."""
    words: list[str] = []
    word: str | None = None
    quoted = False
    pieces = _PIECE.finditer(text)
    for piece in pieces:
        if (slashes := piece[1]) is None:
            if quoted or piece[0][0] not in _BLANKS:
                word = (word or "") + piece[0]
            elif word is not None:
                words.append(word)
                word = None
            continue
        word = (word or "") + "\\" * (len(slashes) // 2)
        if len(slashes) % 2:
            word += '"'
        elif quoted and text.startswith('"', piece.end()):
            word += '"'
            next(pieces)
        else:
            quoted = not quoted
    return (*words,) if word is None else (*words, word)


def join(words: Iterable[str]) -> str:
    """One string that `split` takes apart into exactly these words."""
    return " ".join(_quoted(word) for word in words)


def _quoted(word: str) -> str:
    escaped = re.sub(r'(?<!\\)(\\*)"', r'\1\1\\"', word)
    if word and not any(blank in word for blank in _BLANKS):
        return escaped
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f'"{escaped}' + "\\" * trailing + '"'  # before the closing quote backslashes count double
