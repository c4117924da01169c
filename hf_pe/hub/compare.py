"""Two results side by side, from their reports."""

from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from hf_pe.errors import UsageError
from hf_pe.hub.tables import comparison
from hf_pe.hub_errors import hub_reason
from hf_pe.report import Report, read_report


def report_of(result: str) -> Report:
    """The report of a folder, or of a Hub repository: NAME, USER/NAME or USER/NAME@REVISION.

    Raises:
        UsageError: there is none.
    """
    if Path(result).is_dir():
        return read_report(result)
    repo, _, revision = result.partition("@")
    try:
        file = hf_hub_download(repo, "report.json", revision=revision or None)
    except (HfHubHTTPError, LocalEntryNotFoundError, ValueError, OSError) as error:
        raise UsageError(
            f"{result} is no folder here, and the Hub gives no report.json of it: {hub_reason(error)}. Check the "
            "spelling, the network, and `hf auth login` for private models."
        ) from error
    return read_report(Path(file).parent)


def side_by_side(one: Report, other: Report) -> tuple[list[tuple[str, str, str, str]], list[str]]:
    """Rows (what, one, other, ratio) and what to bear in mind when reading them.

    Quality of two results is set side by side only where both were measured on the same data.
    """
    notes = ["Latencies are of two runs, not taken in turns."]
    if one.machine != other.machine:
        notes.append(f"Two machines: {one.machine}; {other.machine}.")
    a, b = one.after, other.after
    settings = {(t.inputs, t.threads) for t in a.latency} & {(t.inputs, t.threads) for t in b.latency}
    a, b = (
        m.model_copy(update={"latency": tuple(t for t in m.latency if (t.inputs, t.threads) in settings)})
        for m in (a, b)
    )
    if one.data.fingerprint != other.data.fingerprint:
        notes.append("Their quality was measured on different data: it is left out, since it cannot be compared.")
        a, b = (m.model_copy(update={"quality": {}}) for m in (a, b))
    rows = comparison(other.model_copy(update={"before": a, "after": b, "changes": ()}))
    first, second = (" + ".join(s.plan.recipe for s in r.stages) for r in (one, other))
    facts = [("Made from", one.base.descent, other.base.descent, ""), ("Stages", first, second, "")]
    return facts + rows, notes
