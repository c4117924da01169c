import pytest

from hf_pe.errors import UsageError
from hf_pe.hub import side_by_side
from hf_pe.hub.compare import report_of
from hf_pe.report import Latency, write_report
from tests.hub.test_card import measurement, report


def values(rows):
    return {row[0]: row[1:] for row in rows}


def test_two_results_are_set_side_by_side():
    one, other = report(), report(after=measurement(0.25, quality={"spearman": 0.7}))
    rows, notes = side_by_side(one, other)
    assert values(rows)["Parameters"] == ("500", "250", "0.50x")
    assert values(rows)["spearman"] == ("0.8500", "0.7000", "0.82x")
    assert len(notes) == 1


def test_quality_on_different_data_is_left_out():
    other = report(data=report().data.model_copy(update={"fingerprint": "other"}), machine="another")
    rows, notes = side_by_side(report(), other)
    assert values(rows)["spearman"][:2] == ("not measured", "not measured")
    assert any("different data" in note for note in notes)
    assert any("The machines differ" in note for note in notes)


def test_only_latencies_at_the_same_setting_are_compared():
    other = Latency(batch=8, length=128, threads=2, rounds=9, p50_ms=1, p90_ms=2)
    rows, _ = side_by_side(report(), report(after=measurement(0.5, latency=(other,))))
    assert not any(name.startswith("Latency") for name in values(rows))


def test_a_report_is_read_from_a_folder_or_missed_with_a_reason(tmp_path):
    write_report(report(), tmp_path)
    assert report_of(str(tmp_path)) == report()
    with pytest.raises(UsageError, match=r"no local folder, and its report.json cannot be loaded from the Hub"):
        report_of("someone/nothing-there")
