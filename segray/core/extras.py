"""Packages that only some work needs: imported when it begins, and named where they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from segray.errors import ConfigError


def extra(module: str, name: str = "export") -> ModuleType:
    """Import a module and return it. Raises ConfigError that names the extra of segray to install if it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise ConfigError(f"{package} is not installed; pip install 'segray[{name}]' brings it.") from None
