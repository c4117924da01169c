"""Commands on results: measure, card, seal, push, diff."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from hf_pe.cli.display import show_outgoing, show_sent
from hf_pe.cli.main import Compared, ResultFolder, app
from hf_pe.cli.options import Code, ListingCommand, Model, Pickle
from hf_pe.cli.terminal import messages, out, progress


@app.command(cls=ListingCommand, epilog="Example: hf-pe measure build/quickstart/main --data builtin:pydoc")
def measure(  # noqa: PLR0913  options of one command
    model: Model,
    data: Annotated[str | None, typer.Option(help="File or data set for quality; without it: not measured.")] = None,
    task: Annotated[str | None, typer.Option(help="What the model does: {tasks}; default: by its class.")] = None,
    text: Annotated[str, typer.Option(help="Column with the text.")] = "text",
    text_pair: Annotated[str | None, typer.Option(help="Column with the second text.")] = None,
    label: Annotated[str | None, typer.Option(help="Column with the label or score.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    trust_remote_code: Code = False,
    allow_pickle: Pickle = False,
) -> None:
    """Measure any model: size, FLOPs, latency, peak memory, quality."""
    with messages():
        from hf_pe.checkpoints.source import resolve
        from hf_pe.data import DataConfig
        from hf_pe.run.measure_model import measure_source

        source = resolve(model, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
        config = DataConfig(train=data, text=text, text_pair=text_pair, label=label) if data else None
        with progress():
            found = measure_source(source, task, config)
        if as_json:
            print(found.model_dump_json(indent=2))
            return
        table = Table("what", "measured", title=source.name)
        for key, value in found.model_dump(exclude={"latency", "quality"}).items():
            table.add_row(
                key,
                "not measured" if value is None else f"{value:,}" if isinstance(value, int) else str(value),
            )
        for taken in found.latency:
            table.add_row(
                f"latency, {taken.inputs}, {taken.threads_named}, {taken.device}, {taken.dtype}",
                f"p50 {taken.p50_ms:.1f} ms, p90 {taken.p90_ms:.1f} ms, {taken.throughput:.0f} examples per second",
            )
        for name, score in found.quality.items() or {"quality": None}.items():
            table.add_row(name, "not measured" if score is None else f"{score:.4f}")
        out.print(table)


@app.command(epilog="Example: hf-pe card build/quickstart/main")
def card(
    folder: ResultFolder,
    template: Annotated[
        Path | None, typer.Option(help='Jinja file; {% extends "card.md.jinja" %} replaces single blocks.')
    ] = None,
) -> None:
    """Make the card of a result again, from its report.json. What you wrote into it yourself stays."""
    with messages("The card is whole, the old one or the new one; give the same command again."):
        from hf_pe.run.folder import remake_card

        with progress():
            remake_card(folder, template)
        out.print(f"Wrote {folder / 'README.md'}")


@app.command(epilog="Example: hf-pe seal build/quickstart/main")
def seal(folder: ResultFolder) -> None:
    """Take over files that you changed in a result on purpose, so that a push lets them pass. Weights stay measured."""
    with messages("The report is whole, the old one or the new one; give the same command again."):
        from hf_pe.errors import listed
        from hf_pe.run.folder import seal_result

        changes = seal_result(folder)
        taken = [*(["report.json"] if changes.report else []), *changes.changed, *changes.extra, *changes.missing]
        what = listed(taken) if taken else "nothing had changed"
        out.print(f"Sealed {folder}: {what}")


@app.command(epilog="Example: hf-pe push build/quickstart USER/small-minilm --dry-run")
def push(  # noqa: PLR0913  options of one command
    folder: Annotated[Path, typer.Argument(help="Folder of a result, or of a result with its variants.")],
    repo: Annotated[str, typer.Argument(help="NAME or USER/NAME.")],
    public: Annotated[
        bool, typer.Option("--public", help="Make a new repo public, or push to one that is; default: private.")
    ] = False,
    branch: Annotated[str, typer.Option(help="Branch of the main result; variants have their own.")] = "main",
    tag: Annotated[str | None, typer.Option(help="Set on what was pushed.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request in place of a commit.")] = False,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    template: Annotated[Path | None, typer.Option(help="Jinja file for the card.")] = None,
    allow: Annotated[
        list[str] | None, typer.Option(help="A text that the scan shall let pass. May be repeated.")
    ] = None,
    load_back: Annotated[bool, typer.Option("--load-back", help="Download it afterwards and load it.")] = False,
    trust_remote_code: Code = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would go out, and the card; no network.")
    ] = False,
) -> None:
    """Push a result to the Hub: checked first, one atomic commit a branch, compared afterwards."""
    with messages("Of each branch either all was sent or nothing; push again for the rest."):
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


@app.command(epilog="Example: hf-pe diff build/quickstart/main build/quickstart/nf4")
def diff(one: Compared, other: Compared) -> None:
    """Set two results side by side, from their reports: folders, or USER/NAME[@REVISION] on the Hub."""
    with messages():
        from hf_pe.hub import side_by_side
        from hf_pe.hub.compare import report_of

        rows, notes = side_by_side(report_of(one), report_of(other))
        table = Table("", one, other, "change")
        for row in rows:
            table.add_row(*row)
        out.print(table)
        for note in notes:
            out.print(note)


@app.command(hidden=True)
def schema() -> None:
    """Print the JSON schema of recipe files."""
    with messages():
        from hf_pe.recipe_file import json_schema

        print(json_schema(), end="")
