"""How long a queue may run: ``8h`` from now, or until ``07:00``."""

import datetime
import re

from mlxroles.errors import SpecError
from mlxroles.text import safe_text

_BUDGET = re.compile(r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+)m)?(?:(\d+)s)?", re.ASCII)
_CLOCK = re.compile(r"\d{1,2}:\d\d(:\d\d)?", re.ASCII)
_DATE = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d)?", re.ASCII)
_LONGEST = 366 * 86400.0


def parse_budget(text: str) -> float:
    """Seconds of ``8h``, ``90m``, ``1h30m``, ``45s`` or ``1.5h``.

    Raises:
        SpecError: the text is no duration, none at all, or more than a year.
    """
    match = _BUDGET.fullmatch(text.replace(" ", "").lower())
    if match is None or not any(match.groups()):
        shown = safe_text(text, limit=40)
        hint = f"{shown}h or {shown}m" if shown.isdecimal() else "8h, 90m, 1h30m or 45s"
        raise SpecError(f"a budget of '{shown}' is no duration: write {hint}")
    units = (86400, 3600, 60, 1)
    seconds = sum(
        float(part) * unit for part, unit in zip(match.groups(), units, strict=True) if part
    )
    if not 0 < seconds <= _LONGEST:
        raise SpecError(f"a budget of {safe_text(text, limit=40)} is not between 1s and 366d")
    return seconds


def parse_until(text: str, now: datetime.datetime) -> datetime.datetime:
    """The next time that the clock shows ``07:00``, or the time ``2026-11-22 07:00`` itself.

    Args:
        text: A time of the local clock, with or without a date.
        now: With a time zone, or without one for the local clock; the result is the same.

    Raises:
        SpecError: the text is no time, or one that is over.
    """
    wall = now.astimezone().replace(tzinfo=None) if now.tzinfo else now
    word = text.strip()
    try:
        if _CLOCK.fullmatch(word):
            clock = datetime.time.fromisoformat(word.zfill(8 if word.count(":") == 2 else 5))
            until = datetime.datetime.combine(wall.date(), clock)
            if until <= wall:
                until += datetime.timedelta(days=1)
        elif _DATE.fullmatch(word):
            until = datetime.datetime.fromisoformat(word)
        else:
            raise ValueError
    except ValueError:
        shown = safe_text(text, limit=40)
        raise SpecError(f"until '{shown}' is no time: write 07:00 or 2026-11-22 07:00") from None
    if until <= wall:
        raise SpecError(f"{safe_text(word)} is over; it is {wall:%Y-%m-%d %H:%M} now")
    return until.astimezone(now.tzinfo) if now.tzinfo else until
