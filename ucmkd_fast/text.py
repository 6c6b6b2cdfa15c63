"""Text that people chose (names of classes, folders, methods) where something is written: visible, never markup."""

from __future__ import annotations

import html
import re
import unicodedata

_BIDI = frozenset("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")
#: Starts of entities, tags, formulas and emoji; not every dialect lets a backslash escape these.
_ENTITIES = re.compile(r"[&<$]|:(?=[\w+-]+:)")
_MARKDOWN = re.compile(r"[\\`*\[\]|~]|(?<!\w)_|_(?!\w)")


def visible(text: str) -> str:
    r"""The text on one line: control characters, breaks and marks of direction as ``\x1b``, ``\n``, ``\u202e``.

    Letters, spaces and joined emoji of any script stay. So no name moves the cursor, colours the terminal, breaks a
    table or hides what follows; half a surrogate pair (a file name that is not UTF-8) can be written.
    """
    if text.isprintable():
        return text
    return "".join(_escaped(c) if _hides(c) else c for c in text)


def in_markdown(text: str) -> str:
    """The text as Markdown shows it literally, in a paragraph, a heading or a cell of a table."""
    text = _ENTITIES.sub(lambda found: f"&#{ord(found[0])};", visible(text))
    return _MARKDOWN.sub(lambda found: "\\" + found[0], text)


def in_html(text: str) -> str:
    """The text as a page shows it literally, in an element or an attribute."""
    return html.escape(visible(text))


def _hides(c: str) -> bool:
    return unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in _BIDI


def _escaped(c: str) -> str:
    return c.encode("unicode_escape").decode("ascii")
