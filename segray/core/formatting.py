"""Numbers and foreign names as text for people, on a page or a terminal: no exponents."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable
from decimal import Decimal
from typing import Any


def clean(value: Any) -> str:
    """Return text without the control, bidi and surrogate characters that could hide or reorder what is shown."""
    kept = (c for c in str(value) if c == "\n" or unicodedata.category(c) not in ("Cc", "Cf", "Cs"))
    return "–" if value is None else "".join(kept)


def counted(number: int, one: str, several: str = "") -> str:
    """Count in words: `several`, by default `one` with an s, stands beside all numbers but one.

    >>> counted(1, "frame"), counted(2000, "frame"), counted(1, "frame is", "frames are")
    ('1 frame', '2,000 frames', '1 frame is')
    """
    return f"{number:,} {one if number == 1 else several or f'{one}s'}"


def _or_dash(text: Callable[[float], str]) -> Callable[[float | None], str]:
    """Make a formatter that shows an undefined number as a dash."""
    return lambda value: "–" if value is None or not math.isfinite(value) else text(value)


def _short(value: float) -> str:
    for scale, unit in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if value >= scale:
            return f"{value / scale:.1f}\N{NO-BREAK SPACE}{unit}"
    return f"{value:.0f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{Decimal(f'{value:.3g}'):f}"


score = _or_dash(lambda value: f"{value:.3f}")  # 0.4123 → 0.412, as on the command line
change = _or_dash(lambda value: f"{value:+.3f}")  # 0.1 → +0.100
pct = _or_dash(lambda share: f"{share * 100:.1f}%")  # 0.4123 → 41.2%
count = _or_dash(lambda value: f"{value:,}")  # 14328354 → 14,328,354
number = _or_dash(_number)  # three digits that matter, and all of whole numbers: 12.1, 0.001, 14,328
rate = _or_dash(lambda value: f"{value:.1f}" if value >= 1 else _number(value))  # 90.46 → 90.5, 0.0412 → 0.0412
short = _or_dash(_short)  # 14328354 → 14.3 million
duration = _or_dash(_duration)  # 4.21 → 4.2 s, 45.3 → 45 s, 200 → 3 min 20 s, 3725 → 1 h 2 min
