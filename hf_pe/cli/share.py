"""Define the commands on finished models and results: measure, card, seal, push, diff; and schema."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from hf_pe.cli.display import show_outgoing, show_sent
from hf_pe.cli.main import Compared, ResultFolder, app
from hf_pe.cli.options import Code, Command, Model, Pickle
from hf_pe.cli.terminal import messages, out, progress


@app.command(cls=Command, epilog="Example: hf-pe measure build/quickstart/main --data builtin:pydoc")
def measure(  # noqa: PLR0913  options of one command
    model: Model,
    data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="File or data set to evaluate on; without it, quality is not measured."),
    ] = None,
    task: Annotated[
        str | None, typer.Option(metavar="TASK", help="Task of the model: {tasks}; default: the task of its class.")
    ] = None,
    text: Annotated[str, typer.Option(metavar="COLUMN", help="Column with the text.")] = "text",
    text_pair: Annotated[str | None, typer.Option(metavar="COLUMN", help="Column with the second text.")] = None,
    label: Annotated[str | None, typer.Option(metavar="COLUMN", help="Column with the label or score.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    trust_remote_code: Code = False,
    allow_pickle: Pickle = False,
) -> None:
    """Measure size, FLOPs, latency, peak memory and quality.

    Any model can be measured; quality needs --data.
    """
    with messages():
        from hf_pe.checkpoints.source import resolve
        from hf_pe.data import DataConfig
        from hf_pe.run.measure_model import measure_source

        source = resolve(model, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
        config = DataConfig(train=data, text=text, text_pair=text_pair, label=label) if data else None
        with progress():
            measured = measure_source(source, task, config)
        if as_json:
            print(measured.model_dump_json(indent=2))
            return
        table = Table("quantity", "value", title=source.name)
        for key, value in measured.model_dump(exclude={"latency", "quality"}).items():
            table.add_row(
                key,
                "not measured" if value is None else f"{value:,}" if isinstance(value, int) else str(value),
            )
        for latency in measured.latency:
            table.add_row(
                f"latency, {latency.inputs}, {latency.threads_named}, {latency.device}, {latency.dtype}",
                f"p50 {latency.p50_ms:.1f} ms, p90 {latency.p90_ms:.1f} ms, "
                f"{latency.throughput:.0f} examples per second",
            )
        for name, score in measured.quality.items() or {"quality": None}.items():
            table.add_row(name, "not measured" if score is None else f"{score:.4f}")
        out.print(table)


@app.command(cls=Command, epilog="Example: hf-pe card build/quickstart/main")
def card(
    folder: ResultFolder,
    template: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help='Jinja file; with {% extends "card.md.jinja" %} it can replace single blocks.'
        ),
    ] = None,
) -> None:
    """Make the card of a result again from its report.json.

    Text that you added to the card is kept.
    """
    with messages("The card is complete, either the old or the new one; give the same command again."):
        from hf_pe.run.folder import remake_card

        with progress():
            remake_card(folder, template)
        out.print(f"Wrote {folder / 'README.md'}")


@app.command(cls=Command, epilog="Example: hf-pe seal build/quickstart/main")
def seal(folder: ResultFolder) -> None:
    """Accept files that you changed in a result on purpose.

    hf-pe push then sends them. Changed weights or configs are refused, since the report was not measured on them.
    """
    with messages("The report is complete, either the old or the new one; give the same command again."):
        from hf_pe.errors import listed
        from hf_pe.run.folder import seal_result

        changes = seal_result(folder)
        names = [*(["report.json"] if changes.report else []), *changes.changed, *changes.extra, *changes.missing]
        out.print(f"Sealed {folder}: {listed(names) if names else 'nothing had changed'}")


@app.command(cls=Command, epilog="Example: hf-pe push build/quickstart USER/small-minilm --dry-run")
def push(  # noqa: PLR0913  options of one command
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder of a result, or of a result with its variants.")
    ],
    repo: Annotated[str, typer.Argument(metavar="REPOSITORY", help="NAME or USER/NAME on the Hub.")],
    public: Annotated[
        bool,
        typer.Option("--public", help="Create a public repository, or push to a public one; default: private."),
    ] = False,
    branch: Annotated[
        str, typer.Option(metavar="BRANCH", help="Branch of the main result; each variant has a branch of its own.")
    ] = "main",
    tag: Annotated[str | None, typer.Option(metavar="TAG", help="Tag to set on the pushed commit.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of committing.")] = False,
    message: Annotated[str | None, typer.Option(metavar="TEXT", help="Message of the commit.")] = None,
    template: Annotated[Path | None, typer.Option(metavar="FILE", help="Jinja file for the card.")] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Text that is no secret, though the scan reports it. May be repeated."),
    ] = None,
    load_back: Annotated[
        bool, typer.Option("--load-back", help="Download the pushed model afterwards and load it.")
    ] = False,
    trust_remote_code: Code = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the files that would be sent, and the card; uses no network.")
    ] = False,
) -> None:
    """Check a result and push it to the Hub.

    It sends one atomic commit per branch, and compares hashes afterwards.
    """
    with messages("Each branch was sent completely or not at all; push again to send the rest."):
        from hf_pe.hub import Publish
        from hf_pe.hub import push as send

        settings = Publish(
            repo=repo,
            private=not public,
            branch=branch,
            tag=tag,
            create_pr=create_pr,
            message=message,
            template=str(template) if template else None,
            allow=tuple(allow or ()),
            load_back=load_back,
            trust_remote_code=trust_remote_code,
        )
        if dry_run:
            show_outgoing(folder, settings)
            return
        with progress():
            sent = send(folder, settings)
        show_sent(sent, repo)


@app.command(cls=Command, epilog="Example: hf-pe diff build/quickstart/main build/quickstart/nf4")
def diff(first: Compared, second: Compared) -> None:
    """Compare two results by their reports.

    Each is a folder, or USER/NAME[@REVISION] on the Hub.
    """
    with messages():
        from hf_pe.hub import side_by_side
        from hf_pe.hub.compare import report_of

        rows, notes = side_by_side(report_of(first), report_of(second))
        table = Table("", first, second, "change")
        for row in rows:
            table.add_row(*row)
        out.print(table)
        for note in notes:
            out.print(note)


@app.command(cls=Command, epilog="Example: hf-pe schema > recipes/schema.json")
def schema() -> None:
    """Print the JSON schema of recipe files, for editors."""
    with messages():
        from hf_pe.recipe_file import json_schema

        print(json_schema(), end="")
