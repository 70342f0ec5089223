"""Inputs that end the process which decodes them: for the length of a test, in every Python that it starts."""

import os

CRASH, HANG, HOLD = b"CRASH", b"HANGS", b"HOLDS"
SITE = f"""
import PIL.Image
plain = PIL.Image.open

def open(fp, *args, **kwargs):
    first = fp.getvalue()[:5]
    if first == {CRASH!r}:
        import ctypes
        ctypes.string_at(0)  # as a decoder's own fault: a sent signal is no faithful stand-in
    if first == {HANG!r}:
        import time
        time.sleep(1000)
    if first == {HOLD!r}:
        import ctypes
        ctypes.PyDLL(None).sleep(1000)  # without giving up Python's lock
    return plain(fp, *args, **kwargs)

PIL.Image.open = open
"""


def env(folder):
    """The environment in which images that begin with CRASH crash, with HANG hang, and with HOLD hang the whole process."""
    (folder / "sitecustomize.py").write_text(SITE)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}
