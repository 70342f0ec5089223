"""An output is labelled in one precision, whatever devices it goes on with."""

import pytest

from segray.core import precision
from segray.core.infer.settled import settle_precision
from segray.errors import OutputExists
from segray.sections.labelling import InferSection


def test_what_auto_stands_for_is_settled_by_the_first_process_for_all_that_follow(tmp_path):
    first = settle_precision(str(tmp_path), InferSection(), "cpu")
    assert first.precision == "fp32"
    assert settle_precision(str(tmp_path), InferSection(), "cuda") == first  # which would be bf16 or fp16
    assert settle_precision(str(tmp_path), InferSection(precision="bf16"), "cuda").precision == "bf16"


def test_a_machine_that_cannot_compute_as_the_output_was_begun_is_refused(tmp_path, monkeypatch):
    (tmp_path / "_segray").mkdir()
    (tmp_path / "_segray" / "precision.txt").write_text("bf16")
    monkeypatch.setattr(precision, "cpu_has", lambda *names: False)
    with pytest.raises(OutputExists) as error:
        settle_precision(str(tmp_path), InferSection(), "cpu")
    assert str(error.value) == (
        f"{tmp_path} was begun in bf16, which this machine's cpu cannot compute or is slow at, and masks of two "
        "precisions are not mixed. Go on with machines like the first ones, or give another --out."
    )
    monkeypatch.setattr(precision, "cpu_has", lambda *names: True)
    assert settle_precision(str(tmp_path), InferSection(), "cpu").precision == "bf16"
