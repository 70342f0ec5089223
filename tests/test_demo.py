"""What the demo says before and after its work, when it opens a browser, and that its streets are bolder than life."""

import json
import re
from types import SimpleNamespace

import pytest
from running import run

from segray.cli import demo
from segray.core.data import streets
from segray.errors import OutputExists


@pytest.fixture
def ran(monkeypatch):
    """A terminal at which the demo's work is done at once; what the browser was asked to open."""
    opened = []
    monkeypatch.setattr(demo, "_demo", lambda root, extent: str(root / "report.html"))
    terminal = SimpleNamespace(isatty=lambda: True)
    monkeypatch.setattr(demo, "sys", SimpleNamespace(stdout=terminal, platform="linux"))
    monkeypatch.setattr(demo.webbrowser, "open", opened.append)
    monkeypatch.setattr(demo.getpass, "getuser", lambda: "ada")
    for name in ("SSH_CONNECTION", "SSH_TTY", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    return opened


def test_at_a_screen_the_report_opens(ran, monkeypatch, tmp_path):
    monkeypatch.setenv("DISPLAY", ":0")
    demo.demo(str(tmp_path / "demo"))
    assert ran == [f"file://{tmp_path}/demo/report.html"]


@pytest.mark.parametrize(
    ("environ", "hint"),
    [
        ({}, None),
        ({"SSH_CONNECTION": "10.0.0.9 50022 10.0.0.5 22", "DISPLAY": "localhost:10.0"}, "ada@10.0.0.5:"),
        ({"SSH_CONNECTION": "fe80::9 50022 fe80::5 22"}, "ada@[fe80::5]:"),
        ({"SSH_TTY": "/dev/pts/0"}, "ada@HOST:"),
    ],
)
def test_without_a_screen_no_browser_is_opened_and_over_ssh_the_way_to_fetch_is_said(
    ran, monkeypatch, capsys, tmp_path, environ, hint
):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    demo.demo(str(tmp_path / "demo"))
    lines = capsys.readouterr().out.splitlines()
    assert ran == []
    assert re.match(r"This takes about \w+ minutes on two cores; there are \d+ here\.$", lines[0])
    fetch = [f"From your own machine: scp {hint}{tmp_path}/demo/report.html ."] if hint else []
    assert lines[2:] == fetch


def test_a_small_demo_and_a_whole_one_do_not_mix(ran, monkeypatch, tmp_path):
    out = tmp_path / "demo"
    demo.demo(str(out), small=True)
    (out / "report.html").write_text("of the small one")
    with pytest.raises(
        OutputExists, match=r"demo holds a demo with other settings \(frames was \[.*; encoders was .*\)"
    ):
        demo.demo(str(out))
    assert demo.demo(str(out), small=True)
    demo.demo(str(out), overwrite=True)
    assert not (out / "report.html").exists()
    assert json.loads((out / ".segray-demo").read_text())["minutes"] == demo.WHOLE.minutes


def test_small_says_that_it_takes_a_minute(ran, monkeypatch, capsys, tmp_path):
    code, out, _ = run(monkeypatch, capsys, "demo", "--small", "--out", tmp_path / "demo")
    assert code == 0
    assert out.startswith("This takes about a minute on two cores; ")


def test_bold_streets_have_larger_signs_poles_and_people_and_the_same_road():
    life, bold = (streets.draw(1, (96, 128), bold=bold).mask_hw for bold in (1.0, 1.8))
    names = streets.LABEL_SPACE.names
    for name in ("sign symbol", "pole"):
        assert (bold == names.index(name)).sum() > 1.3 * (life == names.index(name)).sum()
    assert ((life == names.index("road")) == (bold == names.index("road"))).mean() > 0.99
