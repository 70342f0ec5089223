"""Work that stands still is given up; work that moves, or waits for its turn, is not."""

import time

import pytest
from hanging import leased

from segray.core.clock import Clock, Standstill, moved, within
from segray.core.io import storage


def stages(clock, *named):
    """Work that spends so many seconds in each stage."""
    for name, seconds in named:
        with clock(name):
            time.sleep(seconds)
    return "done"


def test_work_that_stands_still_is_given_up_with_the_stage_in_which_it_does(tmp_path):
    clock = Clock()
    (tmp_path / "a.jpg").write_bytes(b"picture")

    def work():
        stages(clock, ("decode", 0))
        with clock("fetch"):
            storage.read_bytes(str(tmp_path / "a.jpg"))

    with leased(tmp_path / "a.jpg"):
        with pytest.raises(Standstill, match=r"^no progress in 0\.2 s$") as told:
            within(0.2, clock, work)
        assert told.value.stage == "fetch"


def test_a_long_stage_that_moves_on_and_a_turn_that_is_waited_for_are_no_standstill():
    clock = Clock()

    def work():
        with clock("decode"):
            for _ in range(30):
                time.sleep(0.02)
                moved()  # as for each packet of a video
        return stages(clock, ("wait", 0.6), ("model", 0.05))

    assert within(0.4, clock, work) == "done"


def test_work_that_has_no_stage_moves_its_clock_too():
    def work():
        for _ in range(30):
            time.sleep(0.02)
            moved()
        return "done"

    assert within(0.4, Clock(), work) == "done"


def test_what_work_raises_is_raised_here():
    def work():
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        within(5, Clock(), work)
