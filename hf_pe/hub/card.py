"""The model card: a pure function of a report. It can be made again at any time, without the model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCardData

from hf_pe.hub.pictures import draw_kept_units, draw_quality_against_size
from hf_pe.report import Latency, Measurement, Report

KEPT_PICTURE, QUALITY_PICTURE = "kept_units.png", "quality_size.png"
NOT_MEASURED = "not measured"


def write_card(report: Report, folder: Path) -> None:
    """Write README.md and its pictures into `folder`."""
    pictures = []
    if draw_kept_units(report, folder / KEPT_PICTURE):
        pictures.append((KEPT_PICTURE, "Units kept per layer"))
    if draw_quality_against_size(report, folder / QUALITY_PICTURE):
        pictures.append((QUALITY_PICTURE, "Quality against size"))
    (folder / "README.md").write_text(render_card(report, pictures), "utf-8")


def render_card(report: Report, pictures: Sequence[tuple[str, str]] = ()) -> str:
    """Return the card's text: Hub metadata, then the body."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hf_pe.hub", "."),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    body = environment.get_template("card.md.jinja").render(
        report=report,
        rows=comparison(report),
        gains=_gains(report),
        losses=_not_gained(report),
        pictures=pictures,
    )
    return f"---\n{card_data(report).to_yaml()}\n---\n\n{body}"


def card_data(report: Report) -> ModelCardData:
    """The metadata that the Hub reads."""
    kinds = {stage.plan.recipe for stage in report.stages}
    values = [(report.after, report.metric), (report.before, f"{report.metric} of the original")]
    results = [
        EvalResult(
            task_type=report.pipeline_tag,
            dataset_type=(report.data.eval or report.data.train)[0],
            dataset_name=", ".join(report.data.eval or report.data.train),
            metric_type=report.metric,
            metric_name=name,
            metric_value=round(measured.quality[report.metric], 6),
        )
        for measured, name in values
        if report.metric in measured.quality
    ]
    local = "/" not in report.base.id
    return ModelCardData(
        model_name=report.name,
        base_model=None if local else report.base.id,
        base_model_relation=None if local else ("quantized" if kinds == {"quantize"} else "finetune"),
        license=report.base.license,
        language=list(report.base.language) or None,
        library_name=report.library_name,
        pipeline_tag=report.pipeline_tag,
        tags=["hf_pe", "compressed", *sorted(_TAGS[kind] for kind in kinds)],
        eval_results=results or None,
    )


def comparison(report: Report) -> list[tuple[str, str, str, str]]:
    """Rows (what, before, after, ratio) of the before/after table; the command line prints the same."""
    one, two = report.before, report.after
    rows = [
        _row("Parameters", one.parameters, two.parameters, "{:,}"),
        _row(
            "Parameters without embeddings",
            one.parameters_without_embeddings,
            two.parameters_without_embeddings,
            "{:,}",
        ),
        _row("Weights on disk, MB", _mega(one.disk_bytes), _mega(two.disk_bytes), "{:,.1f}"),
        _row(f"GFLOPs ({two.flops_setting})", _giga(one.flops), _giga(two.flops), "{:,.2f}"),
    ]
    for before, after in zip(one.latency, two.latency, strict=True):
        setting = _setting(after)
        rows.append(_row(f"Latency p50, ms ({setting})", before.p50_ms, after.p50_ms, "{:,.1f}"))
        rows.append(_row(f"Latency p90, ms ({setting})", before.p90_ms, after.p90_ms, "{:,.1f}"))
        rows.append(_row(f"Examples per second ({setting})", before.throughput, after.throughput, "{:,.0f}"))
    rows.append(
        _row(
            "Peak memory, MB (load and one pass)",
            _mega(one.peak_memory_bytes),
            _mega(two.peak_memory_bytes),
            "{:,.0f}",
        )
    )
    rows += [_row(name, one.quality.get(name), two.quality.get(name), "{:,.4f}") for name in two.quality or one.quality]
    if not (two.quality or one.quality):
        rows.append(_row(report.metric, None, None, "{}"))
    return rows


_TAGS = {"prune": "pruned", "distil": "distilled", "quantize": "bitsandbytes"}


def _row(what: str, before: float | None, after: float | None, form: str) -> tuple[str, str, str, str]:
    def text(value: float | None) -> str:
        return NOT_MEASURED if value is None else form.format(value)

    ratio = f"{after / before:.2f}x" if before and after is not None else ""
    return what, text(before), text(after), ratio


def _mega(value: int | None) -> float | None:
    return None if value is None else value / 1e6


def _giga(value: int | None) -> float | None:
    return None if value is None else value / 1e9


def _setting(latency: Latency) -> str:
    length = f", length {latency.length}" if latency.length else ""
    return f"batch {latency.batch}{length}, {latency.threads} threads"


def _gains(report: Report) -> str:
    """One sentence with the numbers that matter."""
    one, two = report.before, report.after
    parts = [f"{two.parameters / one.parameters:.0%} of the parameters"]
    if one.disk_bytes and two.disk_bytes:
        parts.append(f"{two.disk_bytes / one.disk_bytes:.0%} of the bytes on disk")
    if one.latency and two.latency:
        parts.append(
            f"{two.latency[0].p50_ms / one.latency[0].p50_ms:.0%} of the latency at batch {two.latency[0].batch}"
        )
    sentence = "With " + ", ".join(parts)
    before, after = one.quality.get(report.metric), two.quality.get(report.metric)
    if before is None or after is None:
        return f"{sentence} of the original; its quality was not measured."
    return f"{sentence} of the original, {report.metric} is {after:.4f} (original: {before:.4f})."


def _not_gained(report: Report) -> list[str]:
    """What got worse or stayed as it was, in sentences."""
    one, two = report.before, report.after
    found = []
    for before, after in zip(one.latency, two.latency, strict=True):
        if after.p50_ms >= before.p50_ms * 0.98:
            found.append(
                f"It is not faster at {_setting(after)}: {before.p50_ms:.1f} ms before, {after.p50_ms:.1f} ms after."
            )
    if one.peak_memory_bytes and two.peak_memory_bytes and two.peak_memory_bytes >= one.peak_memory_bytes * 0.98:
        found.append("Loading and one pass need no less memory than the original.")
    shared = sorted(one.quality.keys() & two.quality.keys())
    worse = [name for name in shared if _worse(report, one, two, name)]
    return found + [f"{name} went from {one.quality[name]:.4f} to {two.quality[name]:.4f}." for name in worse]


def _worse(report: Report, one: Measurement, two: Measurement, name: str) -> bool:
    change: Any = two.quality[name] - one.quality[name]
    return bool(change < 0 if report.higher_is_better else change > 0)
