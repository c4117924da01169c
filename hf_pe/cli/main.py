"""Define the command `hf-pe`, its own options, and the arguments that name results and recipe files."""

from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from hf_pe.cli.terminal import TRACEBACK, out

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

ResultFolder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of a result that hf-pe run has written.")]
RecipePath = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="Recipe file (YAML), such as recipes/quickstart.yaml.")
]
Compared = Annotated[
    str, typer.Argument(metavar="RESULT", help="Folder of a result, or USER/NAME[@REVISION] on the Hub.")
]


def _print_version(show: bool) -> None:
    if show:
        out.print(f"hf-pe {version('hf-pe')}")
        raise typer.Exit


@app.callback()
def main(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help=f"Print the traceback of an error; {TRACEBACK}=1 does the same.")
    ] = False,
) -> None:
    """Make Hugging Face models smaller and faster, and measure what was gained and lost."""
