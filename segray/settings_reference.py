"""The settings of segray.config for people: docs/settings.md, which this module prints when run, and help of flags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from segray.config import Config, fields_of, within
from segray.sections.values import Located, Unit, Words

PLAIN = {bool: "true or false", int: "integer", float: "number", str: "text", Any: "any value", NoneType: "null"}
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
HEAD = """# Settings

Every setting, with its type, its default, its unit where it has one, and its meaning. They stand in a YAML file for
`--config`, or behind `--set`, as in `--set train.epochs=3`; many have a flag, which `segray COMMAND --help` lists.
Each command reads the sections that it needs, `--dry-run` prints them as they are resolved, and each run keeps them
beside its results. Paths are local or begin with `s3://`, `gs://` or `az://`.

This page is written by `python -m segray.settings_reference > docs/settings.md`.
"""


def page() -> str:
    """Write docs/settings.md, with a table for each section."""
    fields = fields_of()
    parts = [HEAD]
    for section, outer in Config.model_fields.items():
        rows = [_row(key, fields[key]) for key in fields if key.startswith(f"{section}.")]
        parts.append("\n".join([f"## {section}", "", str(getattr(outer.annotation, "__doc__", "")), "", *_table(rows)]))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def help_of(key: str) -> str:
    """Give the help of a flag: the description of its setting, and the default that this does not tell."""
    field = fields_of()[key]
    default = field.get_default(call_default_factory=True)
    shown = "" if default is None or isinstance(default, bool) or default in ([], {}) else _default(field)
    return f"{field.description}{f'  [default: {shown}]' if shown else ''}"


def _row(key: str, field: FieldInfo) -> list[str]:
    unit = next((mark for mark in within(field) if isinstance(mark, Unit)), "")
    return [f"`{key}`", _type(field.annotation, field.metadata), _default(field), unit, field.description or ""]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [("key", "type", "default", "unit", "meaning"), ("---",) * 5, *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _default(field: FieldInfo) -> str:
    """Write a default as YAML does, and a single loss as its name."""
    default = field.get_default(call_default_factory=True)
    if default is None or default in ([], {}):
        return ""
    if isinstance(default, Mapping) and list(default.values()) == [1.0]:
        return str(next(iter(default)))
    default = int(default) if isinstance(default, float) and default == int(default) else default
    return yaml.safe_dump(default, default_flow_style=True).removesuffix("...\n").strip()


def _type(annotation: Any, marks: Sequence[Any] = ()) -> str:
    """Put a type into words: `list[Annotated[float, Gt(0)]]` is a list of numbers > 0."""
    for mark in marks:
        if isinstance(mark, Words | Located):
            return mark.words if isinstance(mark, Located) else str(mark)
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(args[0], [*(one for mark in args[1:] for one in getattr(mark, "metadata", [mark])), *marks])
    if origin in (Union, UnionType):
        return ", or ".join(_type(one, marks) for one in args if one is not NoneType)
    if origin is Literal:
        return " or ".join(filter(None, [", ".join(args[:-1]), args[-1]]))
    if origin is list:
        word, _, bounds = _type(args[0]).partition(" ")
        return f"list of {word}s {bounds}".strip()
    if origin is dict:
        return f"mapping of {_type(args[0])} to {_type(args[1])}"
    return PLAIN[annotation] + _bounds(marks)


def _bounds(marks: Sequence[Any]) -> str:
    """Put the bounds of a number into words, such as ' ≥ 0 and < 1'."""
    found = [
        f"{sign} {getattr(mark, name):g}" for mark in marks for name, sign in BOUNDS.items() if hasattr(mark, name)
    ]
    return f" {' and '.join(found)}" if found else ""


if __name__ == "__main__":
    print(page(), end="")
