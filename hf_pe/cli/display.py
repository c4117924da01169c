"""Print results, plans, and the files that a push sends."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from hf_pe.cli.terminal import out, progress

if TYPE_CHECKING:
    from hf_pe.anatomy import Axis
    from hf_pe.hub import Publish
    from hf_pe.hub.settings import Sent
    from hf_pe.plans import Plan
    from hf_pe.report import Report
    from hf_pe.verify.comparison import Verification


def show_result(target: Path) -> None:
    """Print the figures of a result and of its variants, from their reports."""
    from hf_pe.report import MAIN, read_report

    variants = read_report(target / MAIN).variants if (target / MAIN).is_dir() else {}
    for name in variants or ("",):
        _show_figures(read_report(target / name), name or target.name)
    for name in variants or ("",):
        out.print(f"Wrote {target / name} (its card: {target / name / 'README.md'})")


def _show_figures(report: "Report", title: str) -> None:
    """Print what a report compares: before and after, nearness to the original, and what was forgotten."""
    from hf_pe.hub.nearness_table import forgetting_sentence, nearness_table
    from hf_pe.hub.tables import comparison

    _print_table(("", "before", "after", "change"), comparison(report), title)
    nearness = nearness_table(report)
    if nearness.rows:
        _print_table(nearness.heads, nearness.rows, f"{title}: nearness to the original")
    if sentence := forgetting_sentence(report):
        out.print(sentence)


def _print_table(heads: Iterable[str], rows: Iterable[Iterable[str]], title: str) -> None:
    table = Table(*heads, title=title)
    for row in rows:
        table.add_row(*row)
    out.print(table)


def show_outgoing(folder: Path, settings: "Publish") -> None:
    """Print what a push of `folder` would send, branch by branch."""
    from hf_pe.hub import prepare

    with progress():
        branches = prepare(folder, settings)
    for outgoing in branches:
        table = Table("file", "bytes", title=f"{settings.repo}, branch {outgoing.branch}: files that would be sent")
        table.columns[1].justify = "right"
        for name in outgoing.files:
            table.add_row(name, f"{outgoing.size(name):,}")
        out.print(table)
    card = branches[-1].files["README.md"]
    assert isinstance(card, bytes)
    out.print(card.decode())
    out.print("Nothing was sent. If the repository has a card already, text that people added to it is kept.")


def show_sent(sent: "list[Sent]", repo: str) -> None:
    """Print what a push sent to `repo`, branch by branch."""
    for branch in sent:
        files = f"{len(branch.changed)} files sent" if branch.changed else "nothing new, nothing sent"
        removed = f", {', '.join(branch.removed)} removed" if branch.removed else ""
        target = branch.pull_request or f"branch {branch.branch}, commit {branch.commit[:8]}"
        out.print(f"{repo}: {target}: {files}{removed}")


def verdict_on(axis: "Axis", verification: "Verification") -> str:
    """Return the text in the column "prunable" for a verified or refused axis."""
    if not verification.holds:
        return f"no: {verification.reason}"
    answer = "with hf_pe.cut, not by recipes" if axis.kind.is_vocabulary else "yes"
    error = f"{verification.error:.0e}" if verification.error else "0"
    return f"{answer} (verified, max. rel. error {error})"


def plan_cells(row: "Plan") -> list[str]:
    """Return the cells of one plan in the table of `hf-pe plan`."""
    sizes = ", ".join(f"{s.axis} {s.before} -> {s.shown}" for s in row.sizes)
    return [
        f"{row.parameters:,}",
        f"{row.parameters_without_embeddings:,}",
        f"{row.weight_bytes / 1e6:,.1f}",
        sizes,
        "exact" if row.exact else "estimated",
    ]


def untouched_note(target: Path) -> str:
    """Return a sentence about an output folder that a stopped command did not write."""
    return f"{target} is unchanged." if target.exists() else "Nothing was written as a result."
