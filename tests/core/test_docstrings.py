"""The examples in docstrings are true; those of segray.api, which need a model and labels, run in test_python.py."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((ROOT / "segray").rglob("*.py"))
    if ">>>" in path.read_text() and path.parent.name != "api"
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_are_true(name):
    failed, tried = doctest.testmod(import_module(name))
    assert failed == 0
    assert tried > 0
