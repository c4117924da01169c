"""Count the model types whose axes are verified in docs/architectures.json (made by `python scripts/coverage.py`)."""

import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import row, write
from coverage import DOCS, GOALS, verified_types


def main() -> None:
    architectures = json.loads((DOCS / "architectures.json").read_text("utf-8"))
    run = re.search(r"Made by .*?\((.*?)\)", (DOCS / "architectures.md").read_text("utf-8"), re.DOTALL)
    types = len({each["model_type"] for each in architectures})
    unbuilt = sum(each["status"] == "cannot_build" for each in architectures)
    setting = (
        f"{types} model types, {unbuilt} of which could not be built; every proved cut saw a wrong one noticed; run of "
        f"scripts/coverage.py: {run[1]}"
    )
    counts = verified_types(architectures)
    rows = [row(f"reach.types.{axis}", counts[axis], goal, "higher", "types", setting) for axis, goal in GOALS.items()]
    minutes = float(re.search(r"([\d.]+) minutes", run[1])[1])
    rows.append(row("reach.time", minutes, 20, "lower", "minutes", f"the whole run, two processes: {run[1]}"))
    write("reach_types", rows)


if __name__ == "__main__":
    main()
