r"""Text that is safe to show and to use as a name: any string in, printable characters out.

Token text, prompts and error messages come from models and files, so they may hold escape
sequences, right-to-left overrides or lone surrogates. Whatever reaches a terminal, a figure or
a report goes through :func:`safe_text`. Not here: escaping for HTML or Markdown, which comes on
top of it. A backslash stays as it is, so the escapes are for reading, not for decoding.
"""

import difflib
import hashlib
import math
import re
from collections.abc import Iterable, Sequence

_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
_SLUG = re.compile(r"[a-z0-9_-][a-z0-9._-]{0,79}")
_SLUG_LENGTH = 80
_HASH_LENGTH = 8
_RISKY = ("=", "+", "-", "@", "\t", "\r")
"""With these a spreadsheet takes a text for a formula."""
_LEAST_TOLD = 12
"""Characters in which a beginning, a difference and an end can be shown."""
_BYTE_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def safe_text(text: str, *, limit: int | None = None) -> str:
    r"""The text with everything unprintable as a visible escape: ``\n``, ``\x1b``, ``\u202e``.

    Unprintable is what ``str.isprintable`` says: controls, bidirectional and other format
    characters, surrogates, unassigned code points and every space but the plain one.

    Args:
        text: any string, lone surrogates included.
        limit: longest result in characters; what is cut is shown as ``…``.
    """
    if limit is not None and len(text) > limit:
        text = text[: limit + 1]  # every character yields at least one: no need to escape the rest
    shown = text if text.isprintable() else "".join(_visible(char) for char in text)
    if limit is not None and len(shown) > limit:
        return shown[: max(limit - 1, 0)] + "…"
    return shown


def _visible(char: str) -> str:
    if char.isprintable():
        return char
    if char in _SHORT:
        return _SHORT[char]
    code = ord(char)
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def shortened(text: str, limit: int) -> str:
    """The safe text in at most so many characters, cut in the middle: ends tell names apart."""
    shown = safe_text(text)
    if len(shown) <= limit:
        return shown
    head = max(limit - 1, 0) // 3
    return shown[:head] + "…"[:limit] + shown[len(shown) - max(limit - 1 - head, 0) :]


def distinct(names: Sequence[str], limit: int) -> list[str]:
    """The names, each :func:`shortened`; those that would look alike show where they differ."""
    found = [shortened(name, limit) for name in names]
    for short in {one for one in found if found.count(one) > 1}:
        alike = [at for at, one in enumerate(found) if one == short]
        whole = [safe_text(names[at]) for at in alike]
        start = _shared(whole)
        if limit < _LEAST_TOLD or all(start >= len(one) for one in whole):
            continue
        third = (limit - 2) // 3
        for at, one in zip(alike, whole, strict=True):
            first, last = one[: limit - 2 - 2 * third], one[len(one) - third :]
            found[at] = f"{first}…{one[start : start + third]}…{last}"
    return found


def _shared(texts: Sequence[str]) -> int:
    """Characters with which all of them begin."""
    for at, column in enumerate(zip(*texts, strict=False)):
        if len(set(column)) > 1:
            return at
    return min(map(len, texts), default=0)


def show_token(token: object, *, limit: int | None = None) -> str:
    """The text of a token, safe and with its spaces visible: ``␣the`` is not ``the``."""
    return safe_text(str(token).replace(" ", "␣"), limit=limit)


def ranges(layers: Sequence[int]) -> str:
    """Numbers in ascending order as ranges: ``0-3, 5``."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs)


def guarded(text: str) -> str:
    """The text with an apostrophe before what a spreadsheet would run as a formula."""
    return f"'{text}" if text.startswith(_RISKY) else text


def slug(name: str) -> str:
    """A file name for any string: ``[a-z0-9._-]{1,80}`` without a leading dot.

    A name that already has this form is returned as it is; any other gets 8 hexadecimal digits
    of its SHA-256 appended, so that two names never share a file, also where the file system
    ignores case.
    """
    if _SLUG.fullmatch(name):
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH_LENGTH]
    kept = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip(".-")
    kept = kept[: _SLUG_LENGTH - _HASH_LENGTH - 1].rstrip(".-")
    return f"{kept}-{digest}" if kept else digest


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the choice nearest to the word, or an empty string."""
    by_folded = {choice.casefold(): choice for choice in choices}
    near = difflib.get_close_matches(word.casefold(), by_folded, n=1)
    return f"; did you mean '{safe_text(by_folded[near[0]])}'?" if near else ""


def format_number(value: float, form: str = ".3f", *, missing: str = "–") -> str:
    """The number in this form; with three decimals, ``2e-05`` for what would read as zero."""
    if math.isnan(value):
        return missing
    if form.endswith(".3f") and 0 < abs(value) < 0.0005:
        return f"{value:+.0e}" if form.startswith("+") else f"{value:.0e}"
    return f"{value:{form}}"


def format_bytes(count: float) -> str:
    """The count with a decimal unit and three digits: ``999 B``, ``1.50 GB``."""
    size = float(count)
    for unit in _BYTE_UNITS:
        if abs(size) < 999.5 or unit == _BYTE_UNITS[-1]:
            break
        size /= 1000
    if unit == "B":
        return f"{size:.0f} B"
    digits = 2 if abs(size) < 9.995 else 1 if abs(size) < 99.95 else 0
    return f"{size:.{digits}f} {unit}"


def format_seconds(seconds: float) -> str:
    """The duration in one or two units: ``0.42 s``, ``12 s``, ``3 min 20 s``, ``5 h 07 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s" if seconds >= 0.995 else f"{max(seconds, 0.0):.2f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours:02d} h"
