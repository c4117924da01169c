"""Draw the card's pictures from a report, on a white background that suits light and dark pages."""

import math
from collections.abc import Callable
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.text import Text

from hf_pe.anatomy import names_depth
from hf_pe.files.atomic import written_beside
from hf_pe.plans import SizeChange
from hf_pe.report import Report

matplotlib.use("Agg")

KEPT, REMOVED, ACCENT = "#3b6ea8", "#d9dee5", "#c2562d"
LONGEST_LABEL = 100


def draw_kept_units(report: Report, path: Path) -> bool:
    """Draw how many units each layer keeps, and return False where nothing was pruned."""
    rows = kept_per_layer(report)
    if not rows:
        return False
    figure, panels = plt.subplots(1, len(rows), figsize=(4.2 * len(rows), 3.2), squeeze=False)
    for panel, (name, (original, kept)) in zip(panels[0], rows.items(), strict=True):
        layers = range(len(kept))
        panel.bar(layers, [original] * len(kept), color=REMOVED, label="removed")
        panel.bar(layers, kept, color=KEPT, label="kept")
        panel.set(title=f"{name}: units kept per layer", xlabel="layer of the original", ylabel="units")
        panel.legend(loc="upper center", ncols=2, bbox_to_anchor=(0.5, -0.18), frameon=False)
        panel.spines[["top", "right"]].set_visible(False)
    return _saved(figure, path)


def draw_quality_against_size(report: Report, path: Path) -> bool:
    """Draw the metric over the bytes of the weights after every stage, and return False where it was not measured."""
    points = [("original", report.before.disk_bytes, report.before.quality.get(report.metric))]
    points += [(s.plan.recipe, s.weight_bytes, s.quality.get(report.metric)) for s in report.stages]
    measured = [(name, size / 1e6, value) for name, size, value in points if size and value is not None]
    if len(measured) < 2:
        return False
    figure, panel = plt.subplots(figsize=(5, 3.4))
    panel.plot([p[1] for p in measured], [p[2] for p in measured], color=REMOVED, zorder=1)
    panel.scatter(
        [p[1] for p in measured], [p[2] for p in measured], color=[KEPT] * (len(measured) - 1) + [ACCENT], zorder=2
    )
    for name, size, value in measured:
        panel.annotate(name, (size, value), xytext=(6, 6), textcoords="offset points")
    panel.set(title="Quality against size", xlabel="weights, MB", ylabel=report.metric)
    panel.margins(0.2)
    panel.spines[["top", "right"]].set_visible(False)
    return _saved(figure, path)


def draw_layer_bits(report: Report, path: Path) -> bool:
    """Draw the bits per parameter of each layer, and return False where no stage changed them."""
    stages = [s for s in report.stages if s.layer_bits]
    if not stages or min(stages[-1].layer_bits) >= max(stages[0].layer_bits) - 0.01:
        return False
    bits = stages[-1].layer_bits
    figure, panel = plt.subplots(figsize=(5, 3.2))
    panel.bar(range(len(bits)), [max(stages[0].layer_bits)] * len(bits), color=REMOVED, label="before quantization")
    panel.bar(range(len(bits)), bits, color=KEPT, label="after")
    panel.set(title="Bits per parameter", xlabel="layer of the result", ylabel="bits, scales included")
    panel.legend(loc="upper center", ncols=2, bbox_to_anchor=(0.5, -0.18), frameon=False)
    panel.spines[["top", "right"]].set_visible(False)
    return _saved(figure, path)


def draw_sensitivity(report: Report, path: Path) -> bool:
    """Draw the loss from quantizing each layer alone, in the model's order; return False where it was not measured."""
    plans = [stage.plan for stage in report.stages if stage.plan.sensitivity]
    if not plans:
        return False
    losses, kept_names = plans[-1].sensitivity, set(plans[-1].modules_to_not_convert or ())
    figure, panel = plt.subplots(figsize=(8, 3.2))
    for label, colour, kept in (("quantized", KEPT, False), ("kept", ACCENT, True)):
        bars = [(at, loss) for at, (name, loss) in enumerate(losses.items()) if (name in kept_names) == kept]
        panel.bar([at for at, _ in bars], [loss for _, loss in bars], width=1.0, color=colour, label=label)
    panel.set(title="Loss if only one layer is quantized", xlabel="linear layer, in the model's order", ylabel="loss")
    panel.set_yscale("log" if min(losses.values()) > 0 else "linear")
    panel.legend(loc="upper center", ncols=2, bbox_to_anchor=(0.5, -0.18), frameon=False)
    panel.spines[["top", "right"]].set_visible(False)
    return _saved(figure, path)


def draw_losses(report: Report, path: Path) -> bool:
    """Draw the training loss over the steps of every stage, and return False where no stage trained."""
    curves = [(stage.plan.recipe, stage.losses) for stage in report.stages if len(stage.losses) > 1]
    if not curves:
        return False
    figure, panel = plt.subplots(figsize=(5, 3.2))
    for (name, curve), colour in zip(curves, (KEPT, ACCENT, "#5b8c5a", "#8a6bb0") * len(curves), strict=False):
        panel.plot(*zip(*curve, strict=True), color=colour, label=name)
    scale = "log" if all(loss > 0 for _, curve in curves for _, loss in curve) else "linear"
    panel.set(title="Training loss", xlabel="step", ylabel="loss", yscale=scale)
    panel.legend(frameon=False)
    panel.spines[["top", "right"]].set_visible(False)
    return _saved(figure, path)


def draw_quality_over_time(report: Report, path: Path) -> bool:
    """Draw the metric over the seconds of training, and return False where no stage was evaluated during training."""
    curves = [(s.plan.recipe, s.curve) for s in report.stages if s.curve and len(s.curve.evaluations) > 1]
    if not curves:
        return False
    figure, panel = plt.subplots(figsize=(5, 3.2))
    for (name, curve), colour in zip(curves, (KEPT, "#5b8c5a", "#8a6bb0") * len(curves), strict=False):
        points = [(each.seconds, math.nan if each.value is None else each.value) for each in curve.evaluations]
        panel.plot(*zip(*points, strict=True), color=colour, marker=".", label=f"{name}, held-out training rows")
        kept = [point for point, each in zip(points, curve.evaluations, strict=True) if each.step == curve.kept_step]
        panel.scatter([x for x, _ in kept], [y for _, y in kept], color=ACCENT, zorder=3, label="weights of the result")
    panel.set(title="Quality during training", xlabel="seconds of training", ylabel=curves[0][1].metric)
    panel.legend(frameon=False)
    panel.spines[["top", "right"]].set_visible(False)
    return _saved(figure, path)


def kept_per_layer(report: Report) -> dict[str, tuple[int, list[int]]]:
    """Return, by width axis, the units of an original layer and the kept units of each (0: the layer was removed)."""
    kept_by_axis: dict[str, tuple[int, list[int]]] = {}
    for stage in report.stages:
        depth = {s.axis: s for s in stage.plan.sizes if names_depth(s.axis)}
        kept = stage.plan.kept or {}
        layers: dict[str, tuple[int, list[int]]] = {}
        for name, change in depth.items():
            units = next(iter(kept[name].values())) if name in kept else list(range(max(change.sizes)))
            layers[name.rpartition(".")[0]] = (change.before, units)
        for change in stage.plan.sizes:
            if change.axis in depth:
                continue
            count, units = layers.get(change.axis.rpartition(".")[0], (0, []))
            kept_by_axis[change.axis] = (change.before, _kept_by_original(change, units, count))
        if layers and len(depth) == len(stage.plan.sizes):
            kept_by_axis |= {
                name: (1, [int(i in u) for i in range(n)]) for name, (n, u) in zip(depth, layers.values(), strict=True)
            }
    return kept_by_axis


def _kept_by_original(change: SizeChange, layers: list[int], count: int) -> list[int]:
    """Return how many units of a width each layer of the original keeps.

    Args:
        change: Change of the width.
        layers: Numbers of the layers that remain.
        count: Number of layers of the original; 0 where the stage removes no layer.
    """
    sizes = change.sizes if len(change.sizes) > 1 else change.sizes * len(layers)
    if not count or len(sizes) != len(layers):  # the groups are no layers
        return list(change.sizes)
    by_layer = dict(zip(layers, sizes, strict=True))
    return [by_layer.get(layer, 0) for layer in range(count)]


def _saved(figure: Figure, path: Path) -> bool:
    for text in _labels(figure):
        text.set_parse_math(False)  # names are no formulas
        text.set_text(_shown(text.get_text()))
    with written_beside(path) as fresh:
        figure.savefig(
            fresh, format="png", dpi=120, bbox_inches="tight", facecolor="white", metadata={"Software": None}
        )
    plt.close(figure)
    return True


def _labels(figure: Figure) -> list[Text]:
    """Return the texts that may hold names of metrics, axes and recipes."""
    panels = figure.axes
    legends = [legend for panel in panels if (legend := panel.get_legend())]
    own = [text for panel in panels for text in (panel.title, panel.xaxis.label, panel.yaxis.label, *panel.texts)]
    return own + [text for legend in legends for text in legend.get_texts()]


def _shown(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:LONGEST_LABEL]


PICTURES: dict[str, tuple[str, Callable[[Report, Path], bool]]] = {
    "quality_size.png": ("Quality against size", draw_quality_against_size),
    "kept_units.png": ("Units kept per layer", draw_kept_units),
    "layer_bits.png": ("Bits per layer", draw_layer_bits),
    "sensitivity.png": ("Sensitivity of layers", draw_sensitivity),
    "losses.png": ("Training loss", draw_losses),
    "quality_time.png": ("Quality during training", draw_quality_over_time),
}
"""Title and drawing function of each picture, by file name; the function returns whether the report has its data."""
