"""Make the tables and sentences of a card from a report."""

from typing import Any

from markupsafe import Markup

from hf_pe.hub.markdown import code
from hf_pe.hub.nearness_table import forgetting_sentence
from hf_pe.report import MAIN, Latency, Measurement, MetricChange, Report, percent

NOT_MEASURED = "not measured"
MOST_SENSITIVE = 10
"""Number of layers in the table of sensitive layers; the picture shows all."""
FEWEST_ROWS = 20
"""Evaluation rows below which a metric is too uncertain for the Hub's metadata, which has no intervals."""


def comparison(report: Report) -> list[tuple[str, str, str, str]]:
    """Return the rows (quantity, before, after, ratio) of the before/after table; the command line prints the same."""
    original, result = report.before, report.after
    rows = [
        _row("Parameters", original.parameters, result.parameters, "{:,}"),
        _row(
            "Non-embedding parameters",
            original.parameters_without_embeddings,
            result.parameters_without_embeddings,
            "{:,}",
        ),
        _row("Weights on disk, MB", _mega(original.disk_bytes), _mega(result.disk_bytes), "{:,.1f}"),
        _row("Bits per parameter on disk", _stored_bits(original), _stored_bits(result), "{:,.1f}"),
        _row(f"GFLOPs ({result.flops_setting})", _giga(original.flops), _giga(result.flops), "{:,.2f}"),
    ]
    for before, after in zip(original.latency, result.latency, strict=True):
        setting = _shared_setting(before, after)
        rows.append(_row(f"Latency p50, ms ({setting})", before.p50_ms, after.p50_ms, "{:,.1f}"))
        rows.append(_row(f"Latency p90, ms ({setting})", before.p90_ms, after.p90_ms, "{:,.1f}"))
        rows.append(_row(f"Examples per second ({setting})", before.throughput, after.throughput, "{:,.0f}"))
    rows.append(
        _row(
            "Peak memory, MB (loading and one forward pass)",
            _mega(original.peak_memory_bytes),
            _mega(result.peak_memory_bytes),
            "{:,.0f}",
        )
    )
    intervals = {change.metric: _interval(change) for change in report.changes}
    for name in result.quality or original.quality:
        row = _row(name, original.quality.get(name), result.quality.get(name), "{:,.4f}")
        rows.append((*row[:3], Markup(f"{row[3]} {intervals.get(name, '')}".strip())))
    if not (result.quality or original.quality):
        rows.append(_row(report.metric, None, None, "{}"))
    return rows


def _row(what: str, before: float | None, after: float | None, form: str) -> tuple[str, str, str, str]:
    def text(value: float | None) -> str:
        return NOT_MEASURED if value is None else form.format(value)

    ratio = f"{after / before:.2f}x" if before and after is not None else ""
    return what, text(before), text(after), ratio


def _interval(change: MetricChange) -> str:
    return f"[{change.low:+.4f}, {change.high:+.4f}]"


def sensitivity_rows(report: Report) -> list[tuple[str, str, str]]:
    """Return the most sensitive layers: name, loss if only this layer is quantized, and "kept" or "quantized"."""
    plans = [stage.plan for stage in report.stages if stage.plan.sensitivity]
    losses = plans[-1].sensitivity if plans else {}
    kept = plans[-1].modules_to_not_convert or () if plans else ()
    most = sorted(losses, key=lambda name: -losses[name])[:MOST_SENSITIVE]
    return [(code(name), f"{losses[name]:.2e}", "kept" if name in kept else "quantized") for name in most]


def variant_rows(report: Report) -> list[list[str]]:
    """Return the rows of the table that compares the original and all variants."""

    def cells(name: str, measured: Measurement) -> list[str]:
        latency = measured.latency[-1].p50_ms if measured.latency else None
        values = (
            (_mega(measured.disk_bytes), "{:,.1f}"),
            (latency, "{:,.1f}"),
            (_mega(measured.peak_memory_bytes), "{:,.0f}"),
        )
        texts = [NOT_MEASURED if v is None else form.format(v) for v, form in values]
        quality = measured.quality.get(report.metric)
        return [name, f"{measured.parameters:,}", *texts, NOT_MEASURED if quality is None else f"{quality:,.4f}"]

    return [
        cells("original", report.before),
        *(cells(code(name), measured) for name, measured in report.variants.items()),
    ]


def worse_slices(report: Report) -> list[list[str]]:
    """Return the parts of the data where the main metric got worse with its whole confidence interval."""
    return [
        [
            part.name,
            f"{part.examples:,}",
            f"{part.before:,.4f}",
            f"{part.after:,.4f}",
            Markup(f"{part.after - part.before:+.4f} [{part.low:+.4f}, {part.high:+.4f}]"),
        ]
        for change in main_change(report)
        for part in change.slices
        if (part.high < 0 if report.higher_is_better else part.low > 0)
    ]


def main_change(report: Report) -> list[MetricChange]:
    """Return the change of the report's main metric, or an empty list where it was not compared."""
    return [change for change in report.changes if change.metric == report.metric]


def _mega(value: int | None) -> float | None:
    return None if value is None else value / 1e6


def _stored_bits(measured: Measurement) -> float | None:
    return None if measured.disk_bytes is None else 8 * measured.disk_bytes / measured.parameters


def _giga(value: int | None) -> float | None:
    return None if value is None else value / 1e9


def setting_of(latency: Latency) -> str:
    """Return the conditions of a latency measurement in words."""
    device_and_dtype = "".join(f", {fact}" for fact in (latency.device, latency.dtype) if fact)
    return f"{latency.inputs}, {latency.threads_named}{device_and_dtype}"


def _shared_setting(before: Latency, after: Latency) -> str:
    """Return the conditions of two latencies, with both devices and dtypes where they differ."""
    shared = after
    for fact in ("device", "dtype"):
        first, second = getattr(before, fact), getattr(after, fact)
        if first and second and first != second:
            shared = shared.model_copy(update={fact: f"{first} before and {second} after"})
    return setting_of(shared)


def gains(report: Report) -> str:
    """Return one sentence with the most important figures."""
    original, result = report.before, report.after
    if original.disk_bytes and result.disk_bytes:
        parts = [f"{percent(result.disk_bytes / original.disk_bytes)} of the bytes on disk"]
    else:
        parts = [f"{percent(result.parameters / original.parameters)} of the parameters"]
    if original.latency and result.latency:
        a, b = original.latency[0], result.latency[0]
        parts.append(f"{percent(b.p50_ms / a.p50_ms)} of the latency at batch {b.batch}")
    sentence = "With " + " and ".join(parts)
    before, after = original.quality.get(report.metric), result.quality.get(report.metric)
    if before is None or after is None:
        return f"{sentence} of the original; its quality was not measured."
    return f"{sentence} of the original, {report.metric} is {after:.4f} (original: {before:.4f})."


def regressions(report: Report) -> list[str]:
    """Return sentences about everything that got worse or did not improve."""
    original, result = report.before, report.after
    sentences = []
    for before, after in zip(original.latency, result.latency, strict=True):
        if after.p50_ms >= before.p50_ms * 0.98:
            sentences.append(
                f"It is not faster at {setting_of(after)}: {before.p50_ms:.1f} ms before, {after.p50_ms:.1f} ms after."
            )
    if original.disk_bytes and result.disk_bytes and result.disk_bytes >= original.disk_bytes * 0.98:
        sentences.append(
            "Its weights take no fewer bytes on disk than those of the original: "
            f"{original.disk_bytes / 1e6:,.1f} MB before, {result.disk_bytes / 1e6:,.1f} MB after."
        )
    if (
        original.peak_memory_bytes
        and result.peak_memory_bytes
        and result.peak_memory_bytes >= original.peak_memory_bytes * 0.98
    ):
        sentences.append("Loading and one forward pass need no less memory than for the original.")
    sentences += _quantized_speed(report)
    if report.after.forgetting and report.after.forgetting.is_clear:
        sentences.append(Markup("It has forgotten. ") + forgetting_sentence(report))
    if result.quality and report.data.eval_rows < FEWEST_ROWS:
        sentences.append(
            f"Quality was measured on {report.data.eval_rows:,} rows only: too few for figures that others can rely on."
        )
    shared = sorted(original.quality.keys() & result.quality.keys())
    worse = [name for name in shared if _worse(report, original, result, name)]
    return sentences + [
        f"{name} went from {original.quality[name]:.4f} to {result.quality[name]:.4f}." for name in worse
    ]


def _quantized_speed(report: Report) -> list[str]:
    """Return a sentence about the latency of quantized weights, compared with the same weights before quantization.

    Where these were not measured in the same run, the comparison is with the original.
    """
    if not any(stage.plan.dequantizes for stage in report.stages):
        return []
    plain = report.variants.get(MAIN, report.before)
    times = [
        f"{after.p50_ms / before.p50_ms:.1f} times as long at {setting_of(after)}"
        for before, after in zip(plain.latency, report.after.latency, strict=False)
    ]
    measured = f"; on this machine a forward pass takes {', '.join(times)}" if times else ""
    return [
        "Quantized weights are dequantized in every matrix product: memory shrinks, but latency may not. It depends on "
        f"the machine and its kernels{measured}."
    ]


def _worse(report: Report, original: Measurement, result: Measurement, name: str) -> bool:
    change: Any = result.quality[name] - original.quality[name]
    return not (change >= 0 if report.higher_is_better else change <= 0)  # NaN is worse
