import pytest

from hf_pe.distill import Distillation
from hf_pe.distill.schedule import Schedule, at
from hf_pe.errors import UsageError


@pytest.mark.parametrize(("shape", "half", "quarter"), [("linear", 3.0, 3.5), ("cosine", 3.0, 3.7071)])
def test_it_goes_from_start_to_end(shape, half, quarter):
    schedule = Schedule(start=4.0, end=2.0, shape=shape)
    assert [at(schedule, p) for p in (0, 0.25, 0.5, 1, 2)] == pytest.approx([4.0, quarter, half, 2.0, 2.0], abs=1e-4)
    assert at(1.5, 0.7) == 1.5


def test_weights_may_grow_from_nothing_but_not_stay_there():
    assert Distillation(losses={"task": {"start": 0, "end": 1}}).losses["task"].at(0.5) == 0.5
    with pytest.raises(UsageError, match="must be above 0, got 0"):
        Distillation(losses={"task": {"start": 0, "end": 0}})


def test_a_temperature_never_is_nothing():
    with pytest.raises(UsageError, match=r"temperature above 0, got 0\.0"):
        Distillation(temperature={"start": 2, "end": 0})
