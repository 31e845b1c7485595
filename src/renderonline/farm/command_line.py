"""One string <-> words, by the rules of the Microsoft C runtime (contract section 1, `Arguments`).

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


def split(text: str) -> tuple[str, ...]:
    """The words of a command line; the inverse of `join`."""
    words: list[str] = []
    at = 0
    while True:
        while at < len(text) and text[at] in _BLANKS:
            at += 1
        if at == len(text):
            return tuple(words)
        word, at = _next_word(text, at)
        words.append(word)


def _next_word(text: str, at: int) -> tuple[str, int]:
    """The word that starts at `at`, and where it ends."""
    word: list[str] = []
    quoted = False
    while at < len(text):
        char = text[at]
        if char == "\\":
            piece, at = _backslashes(text, at)
            word.append(piece)
        elif char == '"' and quoted and text[at + 1 : at + 2] == '"':
            word.append('"')
            at += 2
        elif char == '"':
            quoted = not quoted
            at += 1
        elif char in _BLANKS and not quoted:
            break
        else:
            word.append(char)
            at += 1
    return "".join(word), at


def _backslashes(text: str, at: int) -> tuple[str, int]:
    """What a run of backslashes (and the quote it makes plain) stands for, and where to go on."""
    end = at
    while end < len(text) and text[end] == "\\":
        end += 1
    count = end - at
    if text[end : end + 1] != '"':
        return "\\" * count, end
    if count % 2:
        return "\\" * (count // 2) + '"', end + 1
    return "\\" * (count // 2), end


def join(words: Iterable[str]) -> str:
    """One string that `split` takes apart into exactly these words."""
    return " ".join(_quoted(word) for word in words)


def _quoted(word: str) -> str:
    escaped = re.sub(r'(?<!\\)(\\*)"', r'\1\1\\"', word)
    if word and not any(blank in word for blank in _BLANKS):
        return escaped
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f'"{escaped}' + "\\" * trailing + '"'  # before the closing quote backslashes count double
