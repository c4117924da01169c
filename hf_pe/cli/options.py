"""Arguments and options that several commands share."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand, TyperOption


def _names_of_tasks() -> Iterable[str]:
    from hf_pe.tasks import TASKS

    return TASKS


LISTS = {"{tasks}": _names_of_tasks}
"""What stands for the names in a list, in the help of an option, and what returns these names."""


class ListingCommand(TyperCommand):
    """A command whose help names the entries of `LISTS`; these are imported only when the help is asked for."""

    def get_help(self, ctx: Any) -> str:
        """Return the help, with the names in it."""
        written = {option: option.help for option in self.params if isinstance(option, TyperOption)}
        for option, text in written.items():
            for mark, names in LISTS.items():
                if text and mark in text:
                    option.help = text.replace(mark, ", ".join(names()))
        try:
            return super().get_help(ctx)
        finally:
            for option, text in written.items():
                option.help = text


FOLDERS = re.compile(r"(?<![\w./:-])[~/][^\s,'\"\]}]*/")
"""Of an absolute path all but the last part: a report does not tell where things lie on this machine."""


Model = Annotated[str, typer.Argument(help="Hub id, folder, .gguf file, or package:NAME/inner/path.")]


Code = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that the model brings along.")]


Pickle = Annotated[bool, typer.Option("--allow-pickle", help="Load weights from pickles, which can run code.")]


Output = Annotated[Path, typer.Option(help="Folder of the result.")]


Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output folder, after success only.")]


Dtype = Literal["bfloat16", "float16", "float32"]


Set = Annotated[
    list[str] | None, typer.Option("--set", help="Change a value of the file: data.limit=1000. May be repeated.")
]


def kept_units_of(text: str) -> "tuple[str, float | int | list[int]]":
    """AXIS=0.7, AXIS=8 or AXIS=0,1,3."""
    from hf_pe.errors import UsageError

    name, _, value = text.partition("=")
    try:
        numbers = [int(each) if each.strip().isdigit() else float(each) for each in value.split(",")]
    except ValueError:
        numbers = []
    if not numbers or (len(numbers) > 1 and not all(isinstance(each, int) for each in numbers)):
        raise UsageError(f"--keep {text}: expected AXIS=SHARE (ffn=0.7), AXIS=UNITS or layers=0,1,3.")
    return name, numbers[0] if len(numbers) == 1 else [int(each) for each in numbers]
