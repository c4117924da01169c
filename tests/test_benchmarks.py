"""The committed figures are whole, and the page is made from them."""

import json
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "docs" / "benchmarks").glob("*.json"))
KEYS = {
    "id",
    "value",
    "goal",
    "better",
    "unit",
    "peers",
    "interval",
    "setting",
    "command",
    "machine",
    "versions",
    "date",
}


@pytest.mark.parametrize("file", FILES, ids=lambda p: p.name)
def test_rows_are_whole(file):
    for row in json.loads(file.read_text("utf-8")):
        assert set(row) == KEYS
        assert row["better"] in ("lower", "higher")
        assert (ROOT / row["command"].split()[1]).is_file()


def test_the_page_is_made_from_them(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "bench"))
    import common

    assert FILES
    assert (ROOT / "docs" / "benchmarks.md").read_text("utf-8") == common.page()
    sys.modules.pop("common")


def test_the_tests_of_all_kinds_of_faulty_input_exist():
    kinds = tomllib.loads((ROOT / "scripts" / "bench" / "faulty_inputs.toml").read_text("utf-8"))
    for kind, test in kinds.items():
        file, _, name = test.partition("::")
        assert re.search(rf"^ *def {name}\(", (ROOT / file).read_text("utf-8"), re.MULTILINE), f"{kind}: {test}"
