"""When a page is written, by what, and on which machine."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from segray import __version__


def written() -> str:
    """Say it in a line, such as '2026-11-28 20:41 UTC · segray 0.1.0, Python 3.12.3 · 2 × Xeon, 24 GiB, Linux'."""
    software = f"segray {__version__}, Python {platform.python_version()}"
    return " · ".join([f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", software, machine()])


def machine() -> str:
    """Name this machine's processors, memory and system; no name by which a network knows it."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} × {_processor()}, {memory_gib:.0f} GiB, {platform.system()}"


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()  # ARM's cpuinfo has no names
