"""What the commands print: results, plans, and what a push would send."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from hf_pe.cli.terminal import out, progress

if TYPE_CHECKING:
    from hf_pe.hub import Publish
    from hf_pe.hub.settings import Sent
    from hf_pe.plans import Plan
    from hf_pe.verify.comparison import Verification


def show_result(target: Path) -> None:
    """Print the figures of a result and of its variants, from their reports."""
    from hf_pe.hub.tables import comparison
    from hf_pe.report import MAIN, read_report

    variants = read_report(target / MAIN).variants if (target / MAIN).is_dir() else {}
    for name in variants or ("",):
        table = Table("", "before", "after", "change", title=name or target.name)
        for row in comparison(read_report(target / name)):
            table.add_row(*row)
        out.print(table)
    for name in variants or ("",):
        out.print(f"Wrote {target / name} (its card: {target / name / 'README.md'})")


def show_outgoing(folder: Path, settings: "Publish") -> None:
    """Print what a push of `folder` would send, branch by branch."""
    from hf_pe.hub import prepare

    with progress():
        found = prepare(folder, settings)
    for each in found:
        table = Table("file", "bytes", title=f"{settings.repo}, branch {each.branch}: what would go out")
        table.columns[1].justify = "right"
        for name in each.files:
            table.add_row(name, f"{each.size(name):,}")
        out.print(table)
    card = found[-1].files["README.md"]
    assert isinstance(card, bytes)
    out.print(card.decode())
    out.print("Nothing was sent. A card that is on the Hub already keeps what people wrote into it.")


def show_sent(sent: "list[Sent]", repo: str) -> None:
    """Print what a push sent to `repo`, branch by branch."""
    for each in sent:
        what = f"{len(each.changed)} files sent" if each.changed else "nothing new, nothing sent"
        removed = f", {', '.join(each.removed)} removed" if each.removed else ""
        where = each.pull_request or f"branch {each.branch}, commit {each.commit[:8]}"
        out.print(f"{repo}: {where}: {what}{removed}")


def verdict_on(verification: "Verification") -> str:
    """Return whether the axis of a proof is prunable, and why not."""
    if verification.holds:
        return f"yes (verified, max. rel. error {verification.error:.0e})"
    return f"no: {verification.reason}"


def plan_cells(row: "Plan") -> list[str]:
    """Return the cells of a plan's row in the table of `hf-pe plan`."""
    sizes = ", ".join(f"{s.axis} {s.before} -> {s.shown}" for s in row.sizes)
    return [
        f"{row.parameters:,}",
        f"{row.parameters_without_embeddings:,}",
        f"{row.weight_bytes / 1e6:,.1f}",
        sizes,
        "exact" if row.exact else "estimated",
    ]


def untouched_note(target: Path) -> str:
    """Return a sentence on the state of an output that was not written."""
    return f"{target} is as it was." if target.exists() else "Nothing was written as a result."
