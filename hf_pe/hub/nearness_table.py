"""Make the table and the sentence of a card on how near a result is to its original, and on what it has forgotten."""

import math
from collections.abc import Callable
from typing import NamedTuple

from markupsafe import Markup

from hf_pe.nearness_records import CLEAR_LOSS, Estimate, Nearness
from hf_pe.report import Report

COLUMNS = {"kl": "KL, nats", "agreement": "agreement", "cosine": "cosine"}
"""Heads of the columns by the names of `Nearness.values`."""
DEFINITIONS = {
    "kl": "KL is the mean of KL(original, result) over the predictions.",
    "agreement": "Agreement is the fraction of predictions for which both find the same class most likely.",
    "cosine": "The cosine is that of both models' embeddings of a text, averaged over texts.",
}
FORMATS = {"kl": "{:.3g}", "agreement": "{:.1%}", "cosine": "{:.4f}"}
RULE = Markup(
    "The result has forgotten if the general text lost something and clearly more than the evaluation rows did: the "
    f"whole 95 % interval of the difference is above {CLEAR_LOSS} (nats per token, that is a factor of "
    f"{math.exp(CLEAR_LOSS):.2f} in perplexity; or cosine, or fraction of predictions)."
)


class NearnessTable(NamedTuple):
    """Hold a table on the nearness to the original.

    Attributes:
        heads: Heads of the columns.
        rows: One row per text; none where nothing was compared.
        definitions: Sentences on what the columns hold.
    """

    heads: list[str]
    rows: list[list[str]]
    definitions: Markup


def nearness_table(report: Report) -> NearnessTable:
    """Return the table: one row for the evaluation rows, one for the general text."""
    records = {record.text: record for record in report.after.nearness}
    names = [name for name in COLUMNS if any(name in record.values for record in records.values())]
    heads = ["text", "predictions", *(f"{report.metric} {which}" for which in ("before", "after"))]
    if not records and not report.after.general_quality:
        return NearnessTable(heads, [], Markup(""))
    both = (report.before, report.after)
    qualities = [measured.quality.get(report.metric) for measured in both]
    rows = [["evaluation rows", *_cells(records.get("evaluation"), qualities, names)]]
    if report.data.general:
        qualities = [measured.general_quality.get(report.metric) for measured in both]
        text = f"general text ({', '.join(report.data.general)})"
        rows.append([text, *_cells(records.get("general"), qualities, names)])
    definitions = Markup(" ".join(DEFINITIONS[name] for name in names))
    return NearnessTable([*heads, *(COLUMNS[name] for name in names)], rows, definitions)


def forgetting_sentence(report: Report) -> Markup:
    """Return the losses on both texts in one sentence; "" where they were not measured."""
    losses = report.after.forgetting
    if losses is None:
        return Markup("")
    if losses.measure == "perplexity":
        general, excess = (_shown(loss, lambda v: f"{math.exp(v):.3f}") for loss in (losses.general, losses.excess))
        return Markup(
            f"On the general text the perplexity changed by a factor of {general}, on the evaluation rows by "
            f"{math.exp(losses.evaluation):.3f}: {excess} times as much."
        )
    same = Estimate(value=1 - losses.general.value, low=1 - losses.general.high, high=1 - losses.general.low)
    what = "cosine to the original's embeddings" if losses.measure == "cosine" else "agreement with the original"
    return Markup(
        f"On the general text the {what} is {_shown(same, '{:.3f}'.format)}, on the evaluation rows "
        f"{1 - losses.evaluation:.3f}: lower by {_shown(losses.excess, '{:.3f}'.format)}."
    )


def _cells(record: Nearness | None, qualities: list[float | None], names: list[str]) -> list[str]:
    values = record.values if record else {}
    return [
        f"{record.predictions:,}" if record else "",
        *("" if value is None else f"{value:,.4f}" for value in qualities),
        *(Markup(_shown(values[name], FORMATS[name].format)) if name in values else "" for name in names),
    ]


def _shown(estimate: Estimate, form: Callable[[float], str]) -> str:
    """Return a figure with its interval in brackets."""
    return f"{form(estimate.value)} [{form(estimate.low)}, {form(estimate.high)}]"
