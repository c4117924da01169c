"""Write the rows of the benchmark scripts with their setting, and make the page from all of them.

`python scripts/bench/common.py` remakes docs/benchmarks.md.
"""

import argparse
import datetime
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t
from transformers import TrainerCallback

from hf_pe.files.atomic import write_whole
from hf_pe.run.provenance import machine, versions

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
FOLDER = ROOT / "docs" / "benchmarks"


def row(id: str, value: float, goal: float, better: str, unit: str, setting: str, **more: Any) -> dict[str, Any]:
    """Return the row of one figure; `more` may hold peers and interval."""
    return {
        "id": id,
        "value": value,
        "goal": goal,
        "better": better,
        "unit": unit,
        "peers": more.get("peers", {}),
        "interval": more.get("interval"),
        "setting": setting,
        "command": " ".join([f"python scripts/bench/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "machine": machine(),
        "versions": versions(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def write(name: str, rows: list[dict[str, Any]]) -> None:
    """Write docs/benchmarks/NAME.json and remake the page.

    Rows with other ids stay in the file, because a script may have been asked for a part.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    file = FOLDER / f"{name}.json"
    before = json.loads(file.read_text("utf-8")) if file.exists() else []
    merged = {each["id"]: each for each in (*before, *rows)}
    write_whole(file, json.dumps(list(merged.values()), indent=2) + "\n")
    write_whole(FOLDER.parent / "benchmarks.md", page())
    for each in rows:
        print(f"{each['id']}: {each['value']:.4g} {each['unit']} (goal {each['goal']}, {each['better']} is better)")


def met(each: dict[str, Any]) -> bool:
    """Return whether the goal is reached."""
    return bool(each["value"] >= each["goal"] if each["better"] == "higher" else each["value"] <= each["goal"])


def page() -> str:
    """Return the text of docs/benchmarks.md with every committed figure, also of goals that were missed."""
    lines = [
        "# Benchmarks",
        "",
        "Made from `docs/benchmarks/*.json` by `python scripts/bench/common.py`; each figure by the command beside it.",
        "",
    ]
    for file in sorted(FOLDER.glob("*.json")):
        lines += [
            f"## {file.stem}",
            "",
            "| id | value | goal | | 95 % interval | peers | setting |",
            "| --- | ---: | ---: | --- | --- | --- | --- |",
        ]
        rows = json.loads(file.read_text("utf-8"))
        for r in rows:
            sign = ">=" if r["better"] == "higher" else "<="
            interval = "" if r["interval"] is None else f"{r['interval'][0]:.4g} to {r['interval'][1]:.4g}"
            peers = ", ".join(f"{name} {value:.4g}" for name, value in r["peers"].items())
            verdict = "met" if met(r) else "**missed**"
            lines.append(
                f"| `{r['id']}` | {r['value']:.4g} {r['unit']} | {sign} {r['goal']} | {verdict} "
                f"| {interval} | {peers} | {r['setting']} |"
            )
        installed_versions = ", ".join(f"{k} {v}" for k, v in rows[0]["versions"].items())
        commands = "`, `".join(dict.fromkeys(r["command"] for r in rows))
        lines += ["", f"`{commands}` on {rows[0]['machine']}, {rows[0]['date']}; {installed_versions}.", ""]
    return "\n".join(lines)


class Clock(TrainerCallback):
    """Record when each training step ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Record the time."""
        self.times.append(time.perf_counter())

    def step(self) -> float:
        """Return the median of the seconds from the end of a step to the end of the next."""
        return float(np.median(np.diff(self.times)))


def seeds() -> int:
    """Return how many calibration sets are drawn, which --seeds says."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--seeds", type=int, default=5)
    return int(arguments.parse_args().seeds)


def bootstrap(statistic: Callable[[Any], float], count: int, rounds: int = 1000, seed: int = 0) -> list[float]:
    """Return the 95 % interval of `statistic(indices)` over resampled examples."""
    draw = np.random.default_rng(seed)
    values = [statistic(draw.integers(0, count, count)) for _ in range(rounds)]
    return [float(v) for v in np.quantile(values, [0.025, 0.975])]


def gain(id: str, ours: np.ndarray, alone: np.ndarray, peer: str, setting: str) -> dict[str, Any]:
    """Return the row of the accuracy above that of `peer`, from one value a seed; interval over seeds by Student."""
    differences = ours - alone
    half_width = (
        t.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / len(differences) ** 0.5
        if len(differences) > 1
        else 0.0
    )
    return row(
        id,
        float(differences.mean()),
        0.0,
        "higher",
        f"accuracy above {peer}",
        f"{setting}; interval over seeds (Student)",
        peers={"hf_pe": float(ours.mean()), peer: float(alone.mean())},
        interval=[float(differences.mean() - half_width), float(differences.mean() + half_width)]
        if len(differences) > 1
        else None,
    )


def share_of_loss(
    id: str, goal: float, dense: np.ndarray, right_by_method: dict[str, list[np.ndarray]], setting: str
) -> dict[str, Any]:
    """Return the row of the accuracy that "hf_pe" loses over what the best peer loses, as means over calibration sets.

    Args:
        id: of the figure.
        goal: of the ratio.
        dense: of each test example whether the original is right.
        right_by_method: the same for each method, one array a calibration set.
        setting: what was removed, of what.
    """

    def loss(name: str, rows: Any = slice(None)) -> float:
        return float(np.mean([dense[rows].mean() - each[rows].mean() for each in right_by_method[name]]))

    peers = [name for name in right_by_method if name != "hf_pe" and "our repair" not in name]
    best = min(peers, key=loss)
    return row(
        id,
        loss("hf_pe") / loss(best),
        goal,
        "lower",
        f"of the loss of {best}",
        f"{setting}, no training; accuracy, dense {dense.mean():.4f}; mean over {len(right_by_method['hf_pe'])} "
        "calibration sets; interval over examples (paired bootstrap)",
        peers={name: float(np.mean(values)) for name, values in right_by_method.items()},
        interval=bootstrap(lambda i: loss("hf_pe", i) / max(loss(best, i), 1e-9), len(dense)),
    )


if __name__ == "__main__":
    write_whole(FOLDER.parent / "benchmarks.md", page())
