"""Define the arguments and options that several commands share."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand, TyperOption

from hf_pe.cli.terminal import err
from hf_pe.errors import old_name_warning


def _names_of_tasks() -> Iterable[str]:
    from hf_pe.tasks import TASKS

    return TASKS


LISTS = {"{tasks}": _names_of_tasks}
"""Placeholders in the help of options, each with a function that returns the names to put there."""


OLD_OPTIONS = {"--multiple": "--round-to"}
"""The new names of options, by their old ones."""
_TYPE_OF_ARGUMENT = re.compile(r"(?m)^(  [A-Z]+) <\w+>")
"""Matches the metavar of an argument in a help, with the Python type that typer writes after it."""


class Command(TyperCommand):
    """Define a command that knows old names of options, and whose help shows no types but the names in `LISTS`.

    The lists are imported only for the help.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments of the command line with the new names in place of the old ones."""
        return super().parse_args(ctx, [_new_name(argument) for argument in args])

    def get_help(self, ctx: Any) -> str:
        """Return the help with the placeholders filled in and without types."""
        original_texts = {option: option.help for option in self.params if isinstance(option, TyperOption)}
        for option, text in original_texts.items():
            for placeholder, names in LISTS.items():
                if text and placeholder in text:
                    option.help = text.replace(placeholder, ", ".join(names()))
        try:
            return _TYPE_OF_ARGUMENT.sub(lambda match: match[1].ljust(len(match[0])), super().get_help(ctx))
        finally:
            for option, text in original_texts.items():
                option.help = text


def _new_name(argument: str) -> str:
    """Return an argument of the command line with the new name of its option; print a warning where it is old."""
    name, equals, value = argument.partition("=")
    if name not in OLD_OPTIONS:
        return argument
    err.print(f"Warning: {old_name_warning(name, OLD_OPTIONS[name])}")
    return OLD_OPTIONS[name] + equals + value


FOLDERS = re.compile(r"(?<![\w./:-])[~/][^\s,'\"\]}]*/")
"""Matches all but the last part of an absolute path, which a report must not contain."""
Model = Annotated[str, typer.Argument(metavar="MODEL", help="Hub id, folder, .gguf file, or package:NAME/inner/path.")]
Code = Annotated[bool, typer.Option("--trust-remote-code", help="Run custom code that comes with the model.")]
Pickle = Annotated[bool, typer.Option("--allow-pickle", help="Load weights from pickles, which can run code.")]
Output = Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of the result.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output folder, but only after success.")]
RoundTo = Annotated[
    int,
    typer.Option("--round-to", min=1, metavar="UNITS", help="Round widths up to a multiple of this number."),
]
Dtype = Literal["bfloat16", "float16", "float32"]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe: data.limit=1000. May be repeated."),
]


def kept_units_of(text: str) -> "tuple[str, float | int | list[int]]":
    """Parse a `--keep` option: AXIS=0.7, AXIS=8 or AXIS=0,1,3."""
    from hf_pe.errors import UsageError

    name, _, value = text.partition("=")
    try:
        numbers = [int(number) if number.strip().isdigit() else float(number) for number in value.split(",")]
    except ValueError:
        numbers = []
    if not numbers or (len(numbers) > 1 and not all(isinstance(number, int) for number in numbers)):
        raise UsageError(f"--keep {text}: expected AXIS=FRACTION (ffn=0.7), AXIS=UNITS or layers=0,1,3.")
    return name, numbers[0] if len(numbers) == 1 else [int(number) for number in numbers]
