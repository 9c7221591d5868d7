"""Numbers and untrusted text as they appear to a reader: formatting, escaping, making the invisible
visible.
"""

from __future__ import annotations

import html
import json
import math
import unicodedata
from typing import Any

DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

# Direction overrides and invisible separators can make text read differently from what it is, so
# each is named. The zero-width joiner and the variation selectors stay: emoji and several scripts
# need them.
_HIDDEN = {
    *range(0x202A, 0x202F),
    *range(0x2066, 0x206A),
    *(0x061C, 0x200B, 0x200E, 0x200F, 0x2028, 0x2029, 0x2060, 0xFEFF),
}


def visible(text: str) -> str:
    """Return `text` with control, direction-override and unpaired-surrogate characters spelled out.

    Newline and tab are kept. The result can always be encoded as UTF-8 and shows in the order it is
    stored.
    """
    return "".join(_visible_char(char) for char in text)


def _visible_char(char: str) -> str:
    code = ord(char)
    if char in "\n\t" or 0x20 <= code < 0x7F:
        return char
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\N{SYMBOL FOR DELETE}"
    if code in _HIDDEN or 0x80 <= code < 0xA0 or 0xD800 <= code < 0xE000:
        return f"\u27e8U+{code:04X}\u27e9"
    return char


def escape(text: str) -> str:
    """Return `text` as it may stand in an HTML element or a quoted attribute."""
    return html.escape(visible(text), quote=True)


def script_json(value: Any) -> str:
    """Return `value` as JSON that may stand inside a `<script>` element; NaN and infinity raise
    ValueError.
    """
    dumped = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return dumped.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def one_line(text: str, limit: int = 60) -> str:
    """Return `text` without line breaks, control characters or a tail beyond `limit` characters."""
    flat = " ".join(visible(text).split())
    return flat if len(flat) <= limit else flat[: limit - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"


def display_width(text: str) -> int:
    """Return how many terminal cells `text` takes: wide characters two, combining ones none."""
    cells = 0
    for char in text:
        if not unicodedata.combining(char):
            cells += 2 if unicodedata.east_asian_width(char) in "WF" else 1
    return cells


def number(value: float, *, signed: bool = False) -> str:
    """Return `value` with about three significant digits: 1,234 - 56.7 - 1.23 - 0.012 - 4.2e-05."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("+inf" if value > 0 else "-inf")
    size = abs(value)
    if size == 0:
        shown = "0"
    elif size < 1e-4 or size >= 1e7:
        shown = f"{size:.1e}"
    elif size < 1e-3:
        shown = f"{size:.5f}"
    else:
        digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
        shown = f"{size:,.{digits}f}"
    return ("-" if value < 0 else "+" if signed and value > 0 else "") + shown


def duration(seconds: float) -> str:
    """Return seconds as 4.2 s, 3 min 20 s or 2 h 05 min."""
    if not math.isfinite(seconds):
        return number(seconds)
    if seconds < 60:
        return f"{number(seconds)} s"
    minutes = round(seconds / 60) if seconds >= 3600 else int(seconds // 60)
    if minutes < 60:
        return f"{minutes} min {int(seconds % 60):02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def count(amount: int, noun: str, plural: str | None = None) -> str:
    """Return `1 step`, `3 steps`."""
    return f"{amount:,} {noun if amount == 1 else plural or noun + 's'}"


def typographic(shown: str) -> str:
    """Return a formatted number with a true minus sign and 4.2×10⁻⁵ for 4.2e-05; for HTML and
    plots, not terminals.
    """
    mantissa, _, exponent = shown.partition("e")
    if exponent.lstrip("+-").isdigit():
        shown = f"{mantissa}×10{str(int(exponent)).translate(_SUPERSCRIPT)}"
    return MINUS + shown[1:] if shown[:1] == "-" else shown
