import json
import math

import pytest

from hf_pe.errors import UsageError
from hf_pe.report import Latency, Measurement, percent, read_report


@pytest.mark.parametrize(("fraction", "text"), [(0.0, "0%"), (0.002, "below 1%"), (0.0149, "1%"), (0.5, "50%")])
def test_what_is_there_is_never_no_percent(fraction, text):
    assert percent(fraction) == text


def test_one_thread_is_one():
    one = Latency(batch=1, length=8, threads=1, rounds=2, p50_ms=1.0, p90_ms=1.0)
    assert (one.threads_named, one.model_copy(update={"threads": 2}).threads_named) == ("1 thread", "2 threads")


def test_a_metric_that_is_no_number_is_read_as_it_was_written():
    sizes = {"parameters": 1, "parameters_without_embeddings": 1, "dtype": "float32"}
    measured = Measurement(**sizes, quality={"perplexity": math.inf, "spearman": math.nan})
    again = Measurement.model_validate_json(measured.model_dump_json())
    assert again.quality["perplexity"] == math.inf and math.isnan(again.quality["spearman"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no report.json"),
        ("{", "is not valid JSON"),
        ('{"format_version": 1, "name": "\\ud800"}', "half a character"),
        ("{}", "expected format_version 1, got None"),
        (json.dumps({"format_version": 2}), "expected format_version 1, got 2"),
        (
            json.dumps({"format_version": 1}),
            r"is not a report: name: Field required; .* and \d+ more\. Restore the file",
        ),
    ],
)
def test_what_is_no_report_says_so(tmp_path, content, message):
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(UsageError, match=message):
        read_report(tmp_path)
