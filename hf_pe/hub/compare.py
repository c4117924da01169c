"""Compare two results by their reports."""

from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from hf_pe.errors import UsageError
from hf_pe.hub.tables import comparison
from hf_pe.hub_errors import hub_reason
from hf_pe.report import Report, read_report


def report_of(result: str) -> Report:
    """Return the report of a folder, or of a Hub repository: NAME, USER/NAME or USER/NAME@REVISION.

    Raises:
        UsageError: There is none.
    """
    if Path(result).is_dir():
        return read_report(result)
    repo, _, revision = result.partition("@")
    try:
        file = hf_hub_download(repo, "report.json", revision=revision or None)
    except (HfHubHTTPError, LocalEntryNotFoundError, ValueError, OSError) as error:
        raise UsageError(
            f"{result} is no local folder, and its report.json cannot be loaded from the Hub: {hub_reason(error)}. "
            "Check the spelling, the network, and `hf auth login` for private models."
        ) from error
    return read_report(Path(file).parent)


def side_by_side(first: Report, second: Report) -> tuple[list[tuple[str, str, str, str]], list[str]]:
    """Compare two results by their reports.

    Quality is compared only where both results were measured on the same data.

    Returns:
        Rows (quantity, first, second, ratio), and notes on how far the figures can be compared.
    """
    notes = ["The latencies were measured in two separate runs."]
    if first.machine != second.machine:
        notes.append(f"The machines differ: {first.machine}; {second.machine}.")
    a, b = first.after, second.after
    settings = {(t.inputs, t.threads) for t in a.latency} & {(t.inputs, t.threads) for t in b.latency}
    a, b = (
        m.model_copy(update={"latency": tuple(t for t in m.latency if (t.inputs, t.threads) in settings)})
        for m in (a, b)
    )
    if first.data.fingerprint != second.data.fingerprint:
        notes.append("Their quality was measured on different data, so it cannot be compared and is left out.")
        a, b = (m.model_copy(update={"quality": {}}) for m in (a, b))
    rows = comparison(second.model_copy(update={"before": a, "after": b, "changes": ()}))
    stages = [" + ".join(stage.plan.recipe for stage in report.stages) for report in (first, second)]
    facts = [("Made from", first.base.descent, second.base.descent, ""), ("Stages", stages[0], stages[1], "")]
    return facts + rows, notes
