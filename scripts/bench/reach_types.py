"""How many model types have an axis proved, counted in docs/architectures.json (`python scripts/coverage.py`)."""

import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import row, write
from coverage import DOCS, GOALS, verified_types


def main() -> None:
    found = json.loads((DOCS / "architectures.json").read_text("utf-8"))
    told = re.search(r"Made by .*?\((.*?)\)", (DOCS / "architectures.md").read_text("utf-8"), re.DOTALL)
    types = len({each["model_type"] for each in found})
    unbuilt = sum(each["status"] == "cannot_build" for each in found)
    setting = (
        f"{types} model types, {unbuilt} of which could not be built; every proved cut saw a wrong one noticed; run of "
        f"scripts/coverage.py: {told[1]}"
    )
    counts = verified_types(found)
    rows = [row(f"reach.types.{axis}", counts[axis], goal, "higher", "types", setting) for axis, goal in GOALS.items()]
    minutes = float(re.search(r"([\d.]+) minutes", told[1])[1])
    rows.append(row("reach.time", minutes, 20, "lower", "minutes", f"the whole run, two processes: {told[1]}"))
    write("reach_types", rows)


if __name__ == "__main__":
    main()
