import pytest

from tests.hub.faults import CASES, LASTING, attempt, impatient

PASSING = {"500", "reset before", "reset after", "timeout", "429"}


@pytest.fixture(autouse=True)
def _impatient():
    with impatient():
        yield


@pytest.mark.slow
@pytest.mark.parametrize(("endpoint", "kind"), CASES)
def test_one_fault_ends_in_success_or_in_an_error_that_changes_nothing(result, endpoint, kind):
    outcome, message = attempt(result[1], endpoint, kind)
    if endpoint == "delete branch":
        assert outcome == "error, remote unchanged"
    elif kind in PASSING:
        assert outcome == "success", message
    elif endpoint != "tag":
        assert outcome in ("success", "error, remote unchanged")
    assert kind not in message or kind in ("401", "403") or f"({kind})" in message


@pytest.mark.slow
@pytest.mark.parametrize(("endpoint", "kind"), LASTING)
def test_a_fault_that_lasts_ends_in_an_error_that_changes_nothing(result, endpoint, kind):
    outcome, message = attempt(result[1], endpoint, kind, times=99)
    assert outcome == "error, remote unchanged"
    assert "hf auth login" in message if kind == "401" else "Push again" in message
