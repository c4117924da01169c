"""Render the card's template in a sandbox, where it can print the values that it gets and reach nothing else."""

import functools
import traceback
from pathlib import Path
from typing import Any

import jinja2
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BaseModel

from hf_pe.errors import UsageError
from hf_pe.hub import markdown

OURS = "card.md.jinja"


class _Sandbox(ImmutableSandboxedEnvironment):
    """Extend Jinja's sandbox by hiding what a report inherits from pydantic, since `parse_file` would read any file."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Allow the fields and properties of a report, and the attributes of other objects that Jinja allows."""
        if isinstance(obj, BaseModel):
            own = type(obj)
            computed = isinstance(getattr(own, attr, None), property) and not hasattr(BaseModel, attr)
            return attr in own.model_fields or computed
        return super().is_safe_attribute(obj, attr, value)


@functools.cache
def _environment(folder: Path | None) -> jinja2.Environment:
    """Return an environment with the templates of `folder` and those of hf_pe, which escapes every printed value."""
    ours = jinja2.PackageLoader("hf_pe.hub", ".")
    environment = _Sandbox(
        loader=jinja2.ChoiceLoader([jinja2.FileSystemLoader(folder), ours]) if folder else ours,
        undefined=jinja2.StrictUndefined,
        autoescape=True,  # blocks and macros are Markdown already
        finalize=markdown.escape,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {each.__name__: each for each in (markdown.code, markdown.fenced, markdown.quoted)}
    environment.filters |= {each.__name__: each for each in (markdown.table_row, markdown.link)}
    return environment


def render(template: Path | None, **values: Any) -> str:
    """Render the user's template, or by default that of hf_pe.

    Args:
        template: Jinja file of the user; with `{% extends "card.md.jinja" %}` it can replace single blocks.
        values: Values that the template may print; all but `Markup` are escaped.

    Raises:
        UsageError: The user's template is missing or broken, or does something that the sandbox forbids.
    """
    if template is None:
        return _environment(None).get_template(OURS).render(values)
    try:
        return _environment(template.parent).get_template(template.name).render(values)
    except jinja2.TemplateNotFound as error:
        raise UsageError(f"Card template {template}: there is no file '{error}'.") from error
    except Exception as error:  # a template is a program of the user, so any error is about the template
        raise UsageError(f"Card template {template}{_line(template, error)}: {_reason(error)}") from error


def _line(template: Path, error: Exception) -> str:
    """Return the line where the template failed, or "" where the error does not have it."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(template)]
    number = error.lineno if isinstance(error, jinja2.TemplateSyntaxError) else (lines or [None])[-1]
    return f", line {number}" if number else ""


def _reason(error: Exception) -> str:
    if isinstance(error, SecurityError):
        return (
            f"{error} Templates run in a sandbox: they can print fields of `report`, but call no methods and read no "
            "files."
        )
    if isinstance(error, UnicodeDecodeError):
        return f"expected UTF-8: {error}"
    return str(error) if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: {error}"
