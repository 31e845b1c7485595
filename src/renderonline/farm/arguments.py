"""Arguments of engines: checking values and filling templates (C2.6 Argument rules), and command lines as one string
(`split`, `join`; C1.1 Command line).

A template is split into words first and filled in word by word, so that a value can never become a second word.
Values are not searched for placeholders. A word that begins with a value may not look like a flag (`fill`, and for
texts that look like numbers `check_options`).

`split` and `join` follow the rules of the Microsoft C runtime, because the existing node passes its `Arguments` to
.NET, which splits by these rules on every platform. There is no shell: no expansion, no wildcards, no other escapes.

- Words are separated by spaces and tabs outside double quotes.
- 2n backslashes before a quote are n backslashes, and the quote opens or closes a quoted part.
- 2n+1 backslashes before a quote are n backslashes and a plain quote.
- Backslashes anywhere else are plain.
- Two quotes inside a quoted part are one plain quote.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from renderonline.farm.errors import InvalidRequest, RenderOnlineError

MAX_VALUE: Final = 4_096
"""The most characters of a value."""

TYPES: Final[Mapping[str, str]] = {
    "file": r"[a-zA-Z0-9_-]+\.[a-zA-Z0-9]{1,4}",
    "path": r"(/[a-zA-Z0-9_-]+)+/?",
    "extension": r"\.[a-zA-Z0-9]{1,4}",
    "word": r"[A-Za-z0-9_]+",
    "sentence": r"[a-zA-Z0-9\s,.!?'-]+",
    "natural": r"\d+",
    "integer": r"-?\d+",
    "real": r"-?\d+(\.\d+)?",
}
"""The built-in types and their rules."""
_TEXTS: Final = TYPES.keys() - {"natural", "integer", "real"}

UPLOADED_FILE: Final = "@uploaded_file"
OUTPUT_DIRECTORY: Final = "@output_directory"

_MARK: Final = "$RENDERONLINE:"
_PLACEHOLDER = re.compile(re.escape(_MARK) + r"(@?[A-Za-z0-9_]+)?", re.ASCII)
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?", re.ASCII)
_FLAG_STARTS: Final = ("-", "+")  # POV-Ray's flags begin with either


@dataclass(frozen=True, slots=True)
class ArgType:
    """A row of `argtypes`: a named rule for values. `regex`, when not empty, replaces the type's rule."""

    argtype_id: str
    type: str
    regex: str = ""


def check_value(argtype: ArgType, value: str) -> None:
    """Raise `InvalidRequest` unless `value` matches the rule of its argtype.

    Raises `RenderOnlineError` (code `invalid_argtype`) when the row itself is invalid: an unknown type, a wrong regex.
    """
    rule = argtype.regex or TYPES.get(argtype.type, "")
    try:
        pattern = re.compile(rule, re.ASCII) if rule else None
    except (re.error, OverflowError, RecursionError):
        pattern = None
    if pattern is None:
        raise RenderOnlineError(f"Type {argtype.type} is not valid for RenderOnline.", code="invalid_argtype")
    fits = len(value) <= MAX_VALUE and value.isascii() and not value.endswith(("\n", "\r")) and "\0" not in value
    if not fits or pattern.fullmatch(value) is None:
        raise InvalidRequest(f"Value {value[:MAX_VALUE]} must be of type {argtype.type}.", code="invalid_value")


def placeholders(words: Iterable[str]) -> set[str]:
    """Return the names of all placeholders of a template: argtype ids and `@` names."""
    return {match.group(1) for word in words for match in _PLACEHOLDER.finditer(word) if match.group(1)}


def fill(words: Sequence[str], values: Mapping[str, str]) -> tuple[str, ...]:
    """Return the words with every placeholder replaced; the number of words never changes.

    A placeholder's name is the longest run of letters, digits and `_`, so `start` is not found in `start_frame`. Raises
    `InvalidRequest` when a value is missing, or when a value would make its word a flag.
    """
    return tuple(_fill_word(word, values) for word in words)


def _fill_word(word: str, values: Mapping[str, str]) -> str:
    def value_of(match: re.Match[str]) -> str:
        name = match.group(1)
        if name is None:
            raise InvalidRequest(f"The engine's template has a placeholder without a name: {word}", code="bad_template")
        if name not in values:
            raise InvalidRequest(f"A value for argument {name} is missing.", code="missing_argument")
        return values[name]

    filled = _PLACEHOLDER.sub(value_of, word)
    if "\0" in filled:
        raise InvalidRequest("A value holds a NUL character.", code="invalid_value")
    from_template = word.startswith(_FLAG_STARTS)
    if not from_template and filled.startswith(_FLAG_STARTS) and not _NUMBER.fullmatch(filled):
        raise _option(filled)
    return filled


def check_options(words: Iterable[str], values: Mapping[str, str], argtypes: Mapping[str, ArgType]) -> None:
    """Raise `InvalidRequest` when a text would begin a word like an option of the renderer. A number may begin with its
    sign; the sentence `-9` may not, unless something precedes it in its word."""
    texts = {name for name in values if name in argtypes and argtypes[name].type in _TEXTS}
    for word in words:
        names = placeholders((word,))
        if names & texts and names <= values.keys() and not word.startswith(_FLAG_STARTS):
            filled = _fill_word(word, values)
            if filled.startswith(_FLAG_STARTS):
                raise _option(filled)


def _option(filled: str) -> InvalidRequest:
    message = f"Value {filled[:MAX_VALUE]} begins like an option of the renderer. Choose one that begins differently."
    return InvalidRequest(message, code="invalid_value")


def strip_program(words: Sequence[str], names: Iterable[str]) -> tuple[str, ...]:
    """Return the words without the first one if that is the program's own name (C1.1 Command line).

    `names`: the engine's name and the executable's base name, compared without letter case and `.exe`.
    """
    known = {_bare(name) for name in names if name}
    return tuple(words[1:]) if words and _bare(words[0]) in known else tuple(words)


def _bare(name: str) -> str:
    return name.casefold().removesuffix(".exe")


_BLANKS: Final = " \t"
_PIECE: Final = re.compile(r'(\\*)"|[ \t]+|[^\\" \t]+|\\+')
"""A quote with the backslashes before it, blanks, plain letters, or plain backslashes."""


def split(text: str) -> tuple[str, ...]:
    """Return the words of a command line; the inverse of `join`."""
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
    """Return one string that `split` separates into exactly these words."""
    return " ".join(_quoted(word) for word in words)


def _quoted(word: str) -> str:
    escaped = re.sub(r'(?<!\\)(\\*)"', r'\1\1\\"', word)
    if word and not any(blank in word for blank in _BLANKS):
        return escaped
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f'"{escaped}' + "\\" * trailing + '"'  # before the closing quote backslashes count double


def is_plain_directory(path: str) -> bool:
    """Whether this may be opened to a box: an absolute path of something below `/`, written without `..`."""
    parts = path.split("/")
    return path.startswith("/") and any(parts) and not {".", ".."} & set(parts) and not {"$", "\0"} & set(path)
