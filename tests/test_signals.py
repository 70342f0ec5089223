"""Signals that come while Ray starts: none is lost, none cuts the start in two."""

import os
import signal
import sys
import time

import pytest

from segray.cli import app
from segray.cluster import connect, signals
from segray.cluster.signals import held
from segray.errors import Terminated
from segray.sections.labelling import ClusterSection


@pytest.fixture
def terminating():
    """SIGTERM raises Terminated, as in a command."""
    before = signal.signal(signal.SIGTERM, app._terminate)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(("sent", "raised"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)])
@pytest.mark.usefixtures("terminating")
def test_a_signal_acts_when_the_block_has_ended(sent, raised):
    reached = []

    def block():
        with held():
            os.kill(os.getpid(), sent)
            reached.append("the end")
        reached.append("beyond it")

    with pytest.raises(raised) as told:
        block()
    assert (reached, type(told.value)) == (["the end"], raised)


@pytest.mark.usefixtures("terminating")
def test_that_a_signal_came_is_said_at_once_and_once(capsys):
    signals.said.clear()
    said = []

    def block():
        with held():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            said.append(capsys.readouterr().err)

    with pytest.raises(KeyboardInterrupt):
        block()
    assert said == ["segray: stopping …\n"]
    assert capsys.readouterr().err == ""


def test_that_a_signal_came_is_said_also_where_the_lines_of_a_starting_ray_are_silenced(capfd, monkeypatch):
    monkeypatch.setattr(sys, "stderr", sys.__stderr__)
    signals.said.clear()
    with connect._silent_stderr():
        os.write(2, b"RAY_BACKEND_LOG_LEVEL was set\n")
        signals.say_stopping()
    assert capfd.readouterr().err == "segray: stopping …\n"


@pytest.mark.usefixtures("terminating")
def test_a_start_that_fails_after_a_signal_is_a_stop():
    def start():
        with held():
            os.kill(os.getpid(), signal.SIGTERM)
            raise ValueError("The port is taken.")

    with pytest.raises(Terminated):
        start()


@pytest.mark.usefixtures("terminating")
def test_a_signal_that_is_ignored_hides_no_other():
    """A shell ignores Ctrl-C for what it runs in the background."""

    def block():
        with held():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(Terminated):
            block()
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_signal_that_is_ignored_stays_ignored_and_handlers_come_back():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with held():
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_command_that_is_stopped_ends_with_a_line_and_the_signals_code(sent, code, capsys, monkeypatch):
    """click makes another exception of it and prints an empty line, unless the command itself ends with click's."""
    monkeypatch.setattr(sys, "argv", ["segray"])
    with pytest.raises(SystemExit) as told:
        app.main(app.Example("wait", callback=lambda: os.kill(os.getpid(), sent)))
    assert told.value.code == code
    assert capsys.readouterr().err.split("\n") == ["segray: stopping …", "segray: stopped.", ""]


@pytest.fixture
def fake_ray(monkeypatch, tmp_path):
    """A Ray that `init` starts by calling what the test puts into it; what was called, in order."""
    import ray

    calls = []
    monkeypatch.setattr(connect, "READERS", ())  # a real Ray may have left some in this process, and each is waited for
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/short")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: calls.append("shutdown"))
    monkeypatch.setattr(ray, "nodes", list)

    def starting(*steps):
        left = list(steps)
        monkeypatch.setattr(ray, "init", lambda *_, **__: (calls.append("init"), left.pop(0)()))
        return calls

    return starting


def send_and_swallow(sent):
    """A signal in the middle of a start that drops what it raises, as an import's callback does."""
    try:
        os.kill(os.getpid(), sent)
        time.sleep(0.05)
    except BaseException:
        sys.exc_info()


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.usefixtures("terminating")
def test_a_signal_while_ray_starts_stops_the_run_and_ray_is_shut_down(fake_ray, sent):
    calls = fake_ray(lambda: send_and_swallow(sent))
    with pytest.raises(KeyboardInterrupt), connect.connected(ClusterSection()):
        calls.append("labelled")
    assert calls == ["init", "shutdown"]


@pytest.mark.usefixtures("terminating")
def test_a_signal_while_ray_ends_waits_for_the_end(fake_ray, monkeypatch):
    calls = fake_ray(lambda: None)
    monkeypatch.setattr(connect, "_end_readers", lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Terminated), connect.connected(ClusterSection()):
        calls.append("labelled")
    assert calls == ["init", "labelled", "shutdown"]


def fail(error):
    def init():
        raise error

    return init


SLOW = Exception("The current node timed out during startup. This could happen because some of the raylet failed.")


def test_a_start_that_takes_too_long_is_tried_again(fake_ray):
    calls = fake_ray(fail(SLOW), lambda: None)
    with connect.connected(ClusterSection()):
        calls.append("labelled")
    assert calls == ["init", "shutdown", "init", "labelled", "shutdown"]


@pytest.mark.parametrize(
    ("errors", "line"),
    [
        (
            (SLOW, SLOW),
            "Ray did not start on this machine: The current node timed out during startup. Run the command again when "
            "the machine is less busy; Ray's logs are in /tmp/short/ray/session_latest/logs.",
        ),
        (
            (ValueError("The minimum of the object store is 78643200 bytes."),),
            "Ray did not start on this machine: The minimum of the object store is 78643200 bytes.",
        ),
    ],
)
def test_a_ray_that_does_not_start_is_one_line(fake_ray, errors, line):
    calls = fake_ray(*map(fail, errors))
    with pytest.raises(connect.ClusterError) as told, connect.connected(ClusterSection()):
        calls.append("labelled")
    assert str(told.value) == line
    assert calls.count("init") == len(errors)
    assert "labelled" not in calls


def test_whatever_ray_raises_as_a_cluster_is_joined_is_one_line(fake_ray, monkeypatch):
    monkeypatch.setattr(connect, "check_join", lambda address: None)
    calls = fake_ray(fail(Exception("No node info found for head node in GCS. Did the head node start?")))
    with pytest.raises(connect.ClusterError) as told, connect.connected(ClusterSection(address="10.0.0.1:6379")):
        pass
    assert str(told.value) == (
        "10.0.0.1:6379 cannot be joined: No node info found for head node in GCS. "
        "Give the head's address, such as 10.0.0.1:6379, and open its ports to this machine."
    )
    assert calls == ["init", "shutdown"]
