"""The model card: a pure function of a report. It can be made again at any time, without the model."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from markupsafe import Markup

from hf_pe.files.atomic import write_whole
from hf_pe.files.own_files import require_own
from hf_pe.hub.markdown import code, escape, link
from hf_pe.hub.merge import card_text, merge_card, with_memory
from hf_pe.hub.pictures import PICTURES
from hf_pe.hub.scan import scan
from hf_pe.hub.template import render
from hf_pe.papers import PAPERS
from hf_pe.report import MAIN, BaseModelFacts, Latency, Measurement, MetricChange, Report, percent

NOT_MEASURED = "not measured"
MOST_SENSITIVE = 10
"""Layers that are listed; the picture shows all."""
METRICS = {"spearman": "spearmanr", "f1_macro": "f1"}
"""Names that the `evaluate` library and the Hub give to our metrics, where they are others."""
FEWEST_ROWS = 20
"""Evaluation rows without which a metric says too little for the Hub's metadata, where no interval stands beside it."""
_HUB_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?")
_TAGS = {
    "prune": "pruned",
    "swap": "backbone-swap",
    "separate": "depthwise-separable",
    "distil": "distilled",
    "quantize": "bitsandbytes",
    "cast": "half-precision",
}


def write_card(report: Report, folder: Path, template: Path | None = None) -> None:
    """Write README.md and its pictures into `folder`; what people wrote into an old README.md stays."""
    readme = require_own(folder, folder / "README.md")
    old = card_text(readme.read_bytes(), str(readme)) if readme.is_file() else ""
    merge_card(render_card(report, (), template), old, str(readme))  # what cannot be merged is refused unchanged
    text = render_card(report, draw_pictures(report, folder), template)
    write_whole(readme, merge_card(text, old, str(readme)))


def draw_pictures(report: Report, folder: Path) -> list[tuple[str, str]]:
    """Draw what the report has data for; returns (file name, title) of each."""
    return [(file, title) for file, (title, draw) in PICTURES.items() if draw(report, folder / file)]


def render_card(report: Report, pictures: Sequence[tuple[str, str]] = (), template: Path | None = None) -> str:
    """Return the card's text: Hub metadata, then the body.

    Args:
        report: what the card says.
        pictures: (file, title) of those that lie beside it.
        template: the user's own Jinja file; with `{% extends "card.md.jinja" %}` it replaces single blocks.

    Raises:
        UsageError: the template is missing or broken, or does what its sandbox forbids.
    """
    body = render(
        template,
        report=report,
        original=_original(report.base),
        base=_base(report.base),
        on_hub=_on_hub(report.base),
        rows=comparison(report),
        gains=_gains(report),
        losses=_not_gained(report),
        worse=_worse_slices(report),
        slices=sum(len(change.slices) for change in _main_change(report)),
        variants=_variant_rows(report),
        latency_setting=f"p50, ms ({_setting(report.after.latency[-1])})" if report.after.latency else "latency",
        pictures=pictures,
        sensitivity=_sensitivity_rows(report),
        papers=PAPERS,
        citations=_citations(report),
        row_counts=_row_counts(report),
    )
    return with_memory(card_data(report).to_dict(), body)


def _on_hub(base: BaseModelFacts) -> bool:
    """Whether `base.id` is an id of the Hub: one without a user only where a revision was loaded from there."""
    return bool(_HUB_ID.fullmatch(base.id)) and ("/" in base.id or base.revision is not None)


def _base(base: BaseModelFacts) -> Markup:
    """The base model with its address, or the name of its folder."""
    return link(base.id, f"https://huggingface.co/{base.id}") if _on_hub(base) else _local(base.id)


def _local(name: str) -> Markup:
    """A model in a folder of this name, which is left out where the scan before a push would stop at it."""
    if scan({"name": name.encode("utf-8", "replace")}):
        return Markup("a local model")
    return Markup("the local model ") + code(name)


def _original(base: BaseModelFacts) -> Markup:
    """What was compressed and, where that is another model, what it derives from."""
    if base.compressed is None:
        return _base(base)
    on_hub = _HUB_ID.fullmatch(base.compressed) and "/" in base.compressed
    compressed = escape(base.compressed) if on_hub else _local(base.compressed)
    return compressed + Markup(", which derives from ") + _base(base)


def card_data(report: Report) -> ModelCardData:
    """The metadata that the Hub reads."""
    kinds = {stage.plan.recipe for stage in report.stages}
    known, itself = _on_hub(report.base), report.base.compressed is None
    licence, results = report.base.license, _results(report) or None
    licences: Any = list(report.base.licenses)  # the Hub takes a list, which the type of ModelCardData does not say
    return ModelCardData(
        model_name=report.name if results else None,
        base_model=report.base.id if known else None,
        base_model_relation=relation(kinds, copied=itself) if known else None,
        base_model_revision=report.base.revision if known and itself else None,
        license=licences or licence,
        license_name=report.base.license_name if licence == "other" else None,
        license_link=report.base.license_link if licence == "other" else None,
        language=list(report.base.language) or None,
        library_name=report.library_name,
        pipeline_tag=report.pipeline_tag,
        datasets=_hub_datasets(report) or None,
        metrics=[METRICS.get(name, name) for name in report.after.quality] or None,
        tags=["hf_pe", "compressed", *sorted(_TAGS[kind] for kind in kinds & _TAGS.keys())],
        eval_results=results,
    )


def relation(recipes: set[str], *, copied: bool = True) -> str | None:
    """How the Hub's model tree names the descent: weights only packed or cast are "quantized", else "finetune".

    Args:
        recipes: that were carried out.
        copied: whether what was compressed is the base model itself; where it may be a fine-tune of it, weights that
            are only packed or cast have no relation that is certain.
    """
    if recipes and recipes <= {"quantize", "cast"}:
        return "quantized" if copied else None
    return "finetune"


def _results(report: Report) -> list[EvalResult]:
    """Every metric after and before, if the rows are enough; results of their own, since they are of two models."""
    names = report.data.eval or report.data.train
    if not names or report.data.eval_rows < FEWEST_ROWS:
        return []
    return [
        EvalResult(
            task_type=report.pipeline_tag,
            dataset_type=names[0],
            dataset_name=", ".join(names),
            dataset_config=which,
            metric_type=METRICS.get(metric, metric),
            metric_name=f"{metric} ({which})",
            metric_value=round(value, 6),
        )
        for which, measured in (("after compression", report.after), ("before compression", report.before))
        for metric, value in measured.quality.items()
    ]


def _hub_datasets(report: Report) -> list[str]:
    """Sources that are ids on the Hub: not builtin texts, not files."""
    found = [*report.data.train, *(report.data.eval or ())]
    return sorted({name for name in found if "/" in name and _HUB_ID.fullmatch(name)})


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
        _row("Bits per parameter on disk", _stored_bits(one), _stored_bits(two), "{:,.1f}"),
        _row(f"GFLOPs ({two.flops_setting})", _giga(one.flops), _giga(two.flops), "{:,.2f}"),
    ]
    for before, after in zip(one.latency, two.latency, strict=True):
        setting = _shared_setting(before, after)
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
    moved = {change.metric: _interval(change) for change in report.changes}
    for name in two.quality or one.quality:
        row = _row(name, one.quality.get(name), two.quality.get(name), "{:,.4f}")
        rows.append((*row[:3], Markup(f"{row[3]} {moved.get(name, '')}".strip())))
    if not (two.quality or one.quality):
        rows.append(_row(report.metric, None, None, "{}"))
    return rows


def _row(what: str, before: float | None, after: float | None, form: str) -> tuple[str, str, str, str]:
    def text(value: float | None) -> str:
        return NOT_MEASURED if value is None else form.format(value)

    ratio = f"{after / before:.2f}x" if before and after is not None else ""
    return what, text(before), text(after), ratio


def _interval(change: MetricChange) -> str:
    return f"[{change.low:+.4f}, {change.high:+.4f}]"


def _sensitivity_rows(report: Report) -> list[tuple[str, str, str]]:
    """The most sensitive layers, what is lost with one packed, and what became of it."""
    plans = [stage.plan for stage in report.stages if stage.plan.sensitivity]
    lost = plans[-1].sensitivity if plans else {}
    most = sorted(lost, key=lambda name: -lost[name])[:MOST_SENSITIVE]
    return [
        (code(name), f"{lost[name]:.2e}", "kept" if name in (plans[-1].unpacked or ()) else "packed") for name in most
    ]


def _variant_rows(report: Report) -> list[list[str]]:
    def cells(name: str, one: Measurement) -> list[str]:
        latency = one.latency[-1].p50_ms if one.latency else None
        values = (_mega(one.disk_bytes), "{:,.1f}"), (latency, "{:,.1f}"), (_mega(one.peak_memory_bytes), "{:,.0f}")
        texts = [NOT_MEASURED if v is None else form.format(v) for v, form in values]
        quality = one.quality.get(report.metric)
        return [name, f"{one.parameters:,}", *texts, NOT_MEASURED if quality is None else f"{quality:,.4f}"]

    return [cells("original", report.before), *(cells(code(name), one) for name, one in report.variants.items())]


def _worse_slices(report: Report) -> list[list[str]]:
    """Parts of the data where the whole interval of the main metric's change is on the bad side."""
    return [
        [
            part.name,
            f"{part.examples:,}",
            f"{part.before:,.4f}",
            f"{part.after:,.4f}",
            Markup(f"{part.after - part.before:+.4f} [{part.low:+.4f}, {part.high:+.4f}]"),
        ]
        for change in _main_change(report)
        for part in change.slices
        if (part.high < 0 if report.higher_is_better else part.low > 0)
    ]


def _main_change(report: Report) -> list[MetricChange]:
    return [change for change in report.changes if change.metric == report.metric]


def _citations(report: Report) -> list[str]:
    links = dict.fromkeys(link for stage in report.stages for link in stage.plan.references)
    return [*filter(None, [report.base.citation]), *(PAPERS[link].bibtex for link in links if link in PAPERS)]


def _row_counts(report: Report) -> list[str]:
    """What became of the rows that are not used as they are; nothing where all are."""
    counts = report.data.counts
    said = {
        "left out as empty": counts.empty,
        "left out as equal to another one": counts.duplicate,
        "left out by the limits": counts.over_limit,
        "cut off at `max_length` tokens": counts.truncated,
        "evaluated on although they are training rows": counts.overlapping,
    }
    return [f"{count:,} {what}" for what, count in said.items() if count]


def _mega(value: int | None) -> float | None:
    return None if value is None else value / 1e6


def _stored_bits(measured: Measurement) -> float | None:
    return None if measured.disk_bytes is None else 8 * measured.disk_bytes / measured.parameters


def _giga(value: int | None) -> float | None:
    return None if value is None else value / 1e9


def _setting(latency: Latency) -> str:
    where = "".join(f", {fact}" for fact in (latency.device, latency.dtype) if fact)
    return f"{latency.inputs}, {latency.threads_named}{where}"


def _shared_setting(before: Latency, after: Latency) -> str:
    """The setting of both; device and dtype of each where they differ."""
    told = after
    for fact in ("device", "dtype"):
        one, two = getattr(before, fact), getattr(after, fact)
        if one and two and one != two:
            told = told.model_copy(update={fact: f"{one} before and {two} after"})
    return _setting(told)


def _gains(report: Report) -> str:
    """One sentence with the numbers that matter."""
    one, two = report.before, report.after
    if one.disk_bytes and two.disk_bytes:
        parts = [f"{percent(two.disk_bytes / one.disk_bytes)} of the bytes on disk"]
    else:
        parts = [f"{percent(two.parameters / one.parameters)} of the parameters"]
    if one.latency and two.latency:
        a, b = one.latency[0], two.latency[0]
        parts.append(f"{percent(b.p50_ms / a.p50_ms)} of the latency at batch {b.batch}")
    sentence = "With " + " and ".join(parts)
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
    if one.disk_bytes and two.disk_bytes and two.disk_bytes >= one.disk_bytes * 0.98:
        found.append(
            "Its weights take no fewer bytes on disk than those of the original: "
            f"{one.disk_bytes / 1e6:,.1f} MB before, {two.disk_bytes / 1e6:,.1f} MB after."
        )
    if one.peak_memory_bytes and two.peak_memory_bytes and two.peak_memory_bytes >= one.peak_memory_bytes * 0.98:
        found.append("Loading and one pass need no less memory than the original.")
    found += _packed_speed(report)
    if two.quality and report.data.eval_rows < FEWEST_ROWS:
        found.append(
            f"Quality was measured on {report.data.eval_rows:,} rows only: too few for figures that others can rely on."
        )
    shared = sorted(one.quality.keys() & two.quality.keys())
    worse = [name for name in shared if _worse(report, one, two, name)]
    return found + [f"{name} went from {one.quality[name]:.4f} to {two.quality[name]:.4f}." for name in worse]


def _packed_speed(report: Report) -> list[str]:
    """When packed weights pay, by what was measured beside the same weights unpacked (else the original)."""
    if all(stage.plan.recipe != "quantize" for stage in report.stages):
        return []
    plain = report.variants.get(MAIN, report.before)
    times = [
        f"{after.p50_ms / before.p50_ms:.1f} times as long at {_setting(after)}"
        for before, after in zip(plain.latency, report.after.latency, strict=False)
    ]
    took = f"; here a pass takes {', '.join(times)}" if times else ""
    return [
        "Packed weights are turned back for each product: memory is what they surely save. Time depends on the machine "
        f"and its kernels; they pay where reading weights is what takes it{took}."
    ]


def _worse(report: Report, one: Measurement, two: Measurement, name: str) -> bool:
    change: Any = two.quality[name] - one.quality[name]
    return not (change >= 0 if report.higher_is_better else change <= 0)  # NaN is worse
