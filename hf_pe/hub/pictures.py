"""The card's pictures, drawn from a report. White background, so that they read in light and dark pages."""

from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

from hf_pe.report import Report

matplotlib.use("Agg")

KEPT, REMOVED, ACCENT = "#3b6ea8", "#d9dee5", "#c2562d"


def draw_kept_units(report: Report, path: Path) -> bool:
    """Draw how much of each layer is kept; returns False where nothing was pruned."""
    rows = kept_per_layer(report)
    if not rows:
        return False
    figure, panels = plt.subplots(1, len(rows), figsize=(4.2 * len(rows), 3.2), squeeze=False)
    for panel, (name, (full, left)) in zip(panels[0], rows.items(), strict=True):
        layers = range(len(left))
        panel.bar(layers, [full] * len(left), color=REMOVED, label="removed")
        panel.bar(layers, left, color=KEPT, label="kept")
        panel.set(title=f"{name}: units kept per layer", xlabel="layer of the original", ylabel="units")
        panel.legend(loc="upper center", ncols=2, bbox_to_anchor=(0.5, -0.18), frameon=False)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120, bbox_inches="tight", facecolor="white", metadata={"Software": None})
    plt.close(figure)
    return True


def draw_quality_against_size(report: Report, path: Path) -> bool:
    """Draw the metric over the bytes of the weights, from the original through every stage; False if not measured."""
    points = [("original", report.before.disk_bytes, report.before.quality.get(report.metric))]
    points += [(s.plan.recipe, s.weight_bytes, s.quality.get(report.metric)) for s in report.stages]
    known = [(name, size / 1e6, value) for name, size, value in points if size and value is not None]
    if len(known) < 2:
        return False
    figure, panel = plt.subplots(figsize=(5, 3.4))
    panel.plot([p[1] for p in known], [p[2] for p in known], color=REMOVED, zorder=1)
    panel.scatter([p[1] for p in known], [p[2] for p in known], color=[KEPT] * (len(known) - 1) + [ACCENT], zorder=2)
    for name, size, value in known:
        panel.annotate(name, (size, value), xytext=(6, 6), textcoords="offset points")
    panel.set(title="Quality against size", xlabel="weights, MB", ylabel=report.metric)
    panel.margins(0.2)
    panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120, bbox_inches="tight", facecolor="white", metadata={"Software": None})
    plt.close(figure)
    return True


def kept_per_layer(report: Report) -> dict[str, tuple[int, list[int]]]:
    """Per width axis: units of the original, and what each original layer keeps (0: the layer is gone)."""
    found: dict[str, tuple[int, list[int]]] = {}
    for stage in report.stages:
        depth = {s.axis: s for s in stage.plan.sizes if s.axis.endswith("layers")}
        kept = stage.plan.kept or {}
        layers: dict[str, tuple[int, list[int]]] = {}
        for name, change in depth.items():
            units = next(iter(kept[name].values())) if name in kept else list(range(change.after))
            layers[name.rpartition(".")[0]] = (change.before, units)
        for change in stage.plan.sizes:
            tower, _, kind = change.axis.rpartition(".")
            if kind == "layers":
                continue
            count, units = layers.get(tower, (0, []))
            found[change.axis] = (
                change.before,
                [change.after if i in units else 0 for i in range(count)] or [change.after],
            )
        if layers and len(depth) == len(stage.plan.sizes):
            found |= {
                name: (1, [int(i in u) for i in range(n)]) for name, (n, u) in zip(depth, layers.values(), strict=True)
            }
    return found
