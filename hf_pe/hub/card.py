"""Render the model card as a pure function of a report, so that it can be made again at any time without the model."""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from hf_pe.files.atomic import write_whole
from hf_pe.files.own_files import require_own
from hf_pe.hub.markdown import code, escape, link
from hf_pe.hub.merge import card_text, merge_card, with_memory
from hf_pe.hub.metadata import HUB_ID, card_data, on_hub
from hf_pe.hub.nearness_table import RULE, forgetting_sentence, nearness_table
from hf_pe.hub.pictures import PICTURES
from hf_pe.hub.scan import scan
from hf_pe.hub.tables import (
    comparison,
    gains,
    main_change,
    regressions,
    sensitivity_rows,
    setting_of,
    variant_rows,
    worse_slices,
)
from hf_pe.hub.template import render
from hf_pe.papers import PAPERS
from hf_pe.report import BaseModelFacts, Report


def write_card(report: Report, folder: Path, template: Path | None = None) -> None:
    """Write README.md and its pictures into `folder`; text that people added to an old README.md is kept."""
    readme = require_own(folder, folder / "README.md")
    old = card_text(readme.read_bytes(), str(readme)) if readme.is_file() else ""
    merge_card(render_card(report, (), template), old, str(readme))  # refuses a damaged card before any file is written
    text = render_card(report, draw_pictures(report, folder), template)
    write_whole(readme, merge_card(text, old, str(readme)))


def draw_pictures(report: Report, folder: Path) -> list[tuple[str, str]]:
    """Draw the pictures that the report has data for, and return file name and title of each."""
    return [(file, title) for file, (title, draw) in PICTURES.items() if draw(report, folder / file)]


def render_card(report: Report, pictures: Sequence[tuple[str, str]] = (), template: Path | None = None) -> str:
    """Return the card's text: Hub metadata, then the body.

    Args:
        report: Report that the card is made from.
        pictures: File name and title of each picture beside the card.
        template: Jinja file of the user; with `{% extends "card.md.jinja" %}` it can replace single blocks.

    Raises:
        UsageError: The template is missing or broken, or does something that its sandbox forbids.
    """
    body = render(
        template,
        report=report,
        original=_original(report.base),
        base=_base(report.base),
        on_hub=on_hub(report.base),
        rows=comparison(report),
        gains=gains(report),
        nearness=nearness_table(report),
        forgetting=forgetting_sentence(report),
        forgetting_rule=RULE,
        losses=regressions(report),
        worse=worse_slices(report),
        slices=sum(len(change.slices) for change in main_change(report)),
        variants=variant_rows(report),
        latency_setting=f"p50, ms ({setting_of(report.after.latency[-1])})" if report.after.latency else "latency",
        pictures=pictures,
        sensitivity=sensitivity_rows(report),
        papers=PAPERS,
        citations=_citations(report),
        row_counts=_row_counts(report),
    )
    return with_memory(card_data(report).to_dict(), body)


def _base(base: BaseModelFacts) -> Markup:
    """Return the base model as a link to the Hub, or as the name of its folder."""
    return link(base.id, f"https://huggingface.co/{base.id}") if on_hub(base) else _local(base.id)


def _local(name: str) -> Markup:
    """Return words for a model in a folder of this name, without a name that the scan before a push would refuse."""
    if scan({"name": name.encode("utf-8", "replace")}):
        return Markup("a local model")
    return Markup("the local model ") + code(name)


def _original(base: BaseModelFacts) -> Markup:
    """Return the model that was compressed and, where it is a copy or a fine-tune, the model it derives from."""
    if base.compressed is None:
        return _base(base)
    on_hub = HUB_ID.fullmatch(base.compressed) and "/" in base.compressed
    compressed = escape(base.compressed) if on_hub else _local(base.compressed)
    return compressed + Markup(", which derives from ") + _base(base)


def _citations(report: Report) -> list[str]:
    links = dict.fromkeys(link for stage in report.stages for link in stage.plan.references)
    return [*filter(None, [report.base.citation]), *(PAPERS[link].bibtex for link in links if link in PAPERS)]


def _row_counts(report: Report) -> list[str]:
    """Return how many rows were dropped or truncated and why; an empty list where all are used unchanged."""
    counts = report.data.counts
    counts_by_reason = {
        "dropped as empty": counts.empty,
        "dropped as duplicates": counts.duplicate,
        "dropped by the limits": counts.over_limit,
        "truncated to `max_length` tokens": counts.truncated,
        "evaluated on although they are training rows": counts.overlapping,
    }
    return [f"{count:,} {reason}" for reason, count in counts_by_reason.items() if count]
