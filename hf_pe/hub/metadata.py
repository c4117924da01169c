"""Make the YAML metadata of a card: tags, base model, data sets, licences, results."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from hf_pe.hub.tables import FEWEST_ROWS
from hf_pe.report import BaseModelFacts, Report

HUB_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)?")


def on_hub(base: BaseModelFacts) -> bool:
    """Return whether `base.id` is a Hub id; an id without a user is one only where a revision was loaded from there."""
    return bool(HUB_ID.fullmatch(base.id)) and ("/" in base.id or base.revision is not None)


def card_data(report: Report) -> ModelCardData:
    """Return the metadata that the Hub reads from the card."""
    base_on_hub, compressed_itself = on_hub(report.base), report.base.compressed is None
    licence, results = report.base.license, _results(report) or None
    licences: Any = list(report.base.licenses)  # the Hub takes a list, which the type of ModelCardData does not say
    return ModelCardData(
        model_name=report.name if results else None,
        base_model=report.base.id if base_on_hub else None,
        base_model_relation=relation(report, copied=compressed_itself) if base_on_hub else None,
        base_model_revision=report.base.revision if base_on_hub and compressed_itself else None,
        license=licences or licence,
        license_name=report.base.license_name if licence == "other" else None,
        license_link=report.base.license_link if licence == "other" else None,
        language=list(report.base.language) or None,
        library_name=report.library_name,
        pipeline_tag=report.pipeline_tag,
        datasets=_hub_datasets(report) or None,
        metrics=[report.hub_metrics.get(name, name) for name in report.after.quality] or None,
        tags=["hf_pe", "compressed", *sorted({stage.plan.tag for stage in report.stages} - {""})],
        eval_results=results,
    )


def relation(report: Report, *, copied: bool = True) -> str | None:
    """Return the relation in the Hub's model tree: "quantized" where only the precision changed, else "finetune".

    Args:
        report: Report of the result.
        copied: Whether the base model itself was compressed. Where it may have been a fine-tune of the base model, the
            relation of a quantized or cast result is not certain, and None is returned.
    """
    changes = {stage.plan.changes for stage in report.stages}
    if changes == {"precision"}:
        return "quantized" if copied else None
    return "finetune"


def _results(report: Report) -> list[EvalResult]:
    """Return every metric after and before compression, on the evaluation rows and on the general text."""
    both = (("after compression", report.after), ("before compression", report.before))
    own = [(which, measured.quality) for which, measured in both]
    general = [(which, measured.general_quality) for which, measured in both]
    return [
        *_results_on(report, report.data.eval or report.data.train, report.data.eval_rows, own),
        *_results_on(report, report.data.general, report.data.general_rows, general),
    ]


def _results_on(
    report: Report, sources: Sequence[str], rows: int, qualities: Iterable[tuple[str, Mapping[str, float]]]
) -> list[EvalResult]:
    """Return metrics as results of their own, if there are sources and enough rows."""
    if not sources or rows < FEWEST_ROWS:
        return []
    return [
        EvalResult(
            task_type=report.pipeline_tag,
            dataset_type=sources[0],
            dataset_name=", ".join(sources),
            dataset_config=which,
            metric_type=report.hub_metrics.get(metric, metric),
            metric_name=f"{metric} ({which})",
            metric_value=round(value, 6),
        )
        for which, quality in qualities
        for metric, value in quality.items()
    ]


def _hub_datasets(report: Report) -> list[str]:
    """Return the data sources that are ids on the Hub, neither builtin texts nor files."""
    sources = [*report.data.train, *(report.data.eval or ())]
    return sorted({name for name in sources if "/" in name and HUB_ID.fullmatch(name)})
