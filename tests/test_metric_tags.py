"""Metrics that are told without a Ray: they are counted, and sent to nobody."""

import pytest

from segray.cluster.telemetry import Gauges, LabelCounters, tag
from segray.core.labels.parts import Receipt


@pytest.mark.parametrize(
    ("out", "value"),
    [("s3://b/a b?", "s3://b/a b?"), ("K/Straße", "K/Stra%C3%9Fe"), ("日", "%E6%97%A5"), ("\udcff", "%FF")],
)
def test_a_run_whose_place_is_not_ascii_has_metrics(out, value):
    assert tag(out) == value
    LabelCounters(out).add(Receipt(0, rows=3, errors=1, created=True, seconds={"model": 0.5}))
    gauges = Gauges(out)
    gauges.set_epoch({"epoch": 1, "miou": 0.5})
    gauges.close()
