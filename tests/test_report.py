import json

import pytest

from hf_pe.errors import UsageError
from hf_pe.report import read_report


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no report.json"),
        ("{", "is not a report"),
        ("{}", "expected format_version 1, got None"),
        (json.dumps({"format_version": 2}), "expected format_version 1, got 2"),
        (json.dumps({"format_version": 1}), "is not a report"),
    ],
)
def test_what_is_no_report_says_so(tmp_path, content, message):
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(UsageError, match=message):
        read_report(tmp_path)
