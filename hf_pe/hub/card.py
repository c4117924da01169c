"""The model card: a pure function of a report. It can be made again at any time, without the model."""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from hf_pe.files.atomic import write_whole
from hf_pe.files.own_files import require_own
from hf_pe.hub.markdown import code, escape, link
from hf_pe.hub.merge import card_text, merge_card, with_memory
from hf_pe.hub.metadata import HUB_ID, card_data, on_hub
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
        on_hub=on_hub(report.base),
        rows=comparison(report),
        gains=gains(report),
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
    """The base model with its address, or the name of its folder."""
    return link(base.id, f"https://huggingface.co/{base.id}") if on_hub(base) else _local(base.id)


def _local(name: str) -> Markup:
    """A model in a folder of this name, which is left out where the scan before a push would stop at it."""
    if scan({"name": name.encode("utf-8", "replace")}):
        return Markup("a local model")
    return Markup("the local model ") + code(name)


def _original(base: BaseModelFacts) -> Markup:
    """What was compressed and, where that is another model, what it derives from."""
    if base.compressed is None:
        return _base(base)
    on_hub = HUB_ID.fullmatch(base.compressed) and "/" in base.compressed
    compressed = escape(base.compressed) if on_hub else _local(base.compressed)
    return compressed + Markup(", which derives from ") + _base(base)


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
