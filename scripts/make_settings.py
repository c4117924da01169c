"""Write docs/settings.md: every setting of every recipe, from the classes that read them.

python scripts/make_settings.py
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_pe.recipe_file import RecipeFile
from hf_pe.recipes import RECIPES

PAGE = Path(__file__).resolve().parents[1] / "docs" / "settings.md"
SCHEMA = RecipeFile.model_json_schema()
LIMITS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
ELSEWHERE = {"Schedule", "DataConfig", "Publish", *(recipe.__name__ for recipe in RECIPES.values())}
"""Groups with a section of their own, or without names that need one."""
GROUPS = {"The recipe file": SCHEMA, "`data`": SCHEMA["$defs"]["DataConfig"], "`publish`": SCHEMA["$defs"]["Publish"]}
TABLE = "| setting | values | default | |\n| --- | --- | --- | --- |\n"


def referred(field: dict[str, Any]) -> dict[str, Any] | None:
    """Return the group of settings that a field holds, alone or in a list; None where it holds values."""
    options = [field, *field.get("anyOf", []), field.get("items", {})]
    names = [option["$ref"].rpartition("/")[2] for option in options if "$ref" in option]
    return SCHEMA["$defs"][names[0]] if names else None


def values(field: dict[str, Any]) -> str:
    """Return which values a field takes, in words."""
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(values(option) for option in field["anyOf"] if option.get("type") != "null"))
    if "$ref" in field or "oneOf" in field:
        return "settings"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    kind = {"integer": "whole number", "boolean": "true or false", "object": "values by name"}.get(field["type"])
    limits = [f"{sign} {field[name]:g}" for name, sign in LIMITS.items() if name in field]
    if field["type"] == "array":
        return f"list of {values(field['items'])}" if field.get("items") else "list"
    return " ".join([kind or field["type"], ", ".join(limits)]).strip()


def rows(group: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield one row of the table for each setting of a group, and for those of the groups inside."""
    for name, field in group["properties"].items():
        if "const" in field:
            continue
        default = field.get("default")
        shown = "" if default in (None, {}, [], ()) else f"`{json.dumps(default)}`"
        text = field.get("description", "").replace("|", "\\|")
        begins_with_value = text.partition(" ")[0].endswith(":")
        text = text if begins_with_value else text[:1].upper() + text[1:]
        yield f"| `{prefix}{name}` | {values(field)} | {shown} | {text} |\n"
        inner = referred(field)
        if inner is not None and inner["title"] not in ELSEWHERE:
            yield from rows(inner, f"{prefix}{name}.")


def section(title: str, group: dict[str, Any], text: str = "") -> str:
    """Return a section of the page: a sentence, and the table of a group's settings."""
    return f"\n## {title}\n\n{text}{TABLE}{''.join(rows(group))}"


def page() -> str:
    """Return the text of the page."""
    parts = [
        "# Settings of the recipes\n\nThis page is made by `python scripts/make_settings.py`. A setting is a key in a "
        "recipe file and an\nargument in Python. `name.inner` stands for the key `inner` inside `name`.\n"
    ]
    parts += [section(title, group) for title, group in GROUPS.items()]
    for kind, recipe in RECIPES.items():
        group = SCHEMA["$defs"][recipe.__name__]
        summary = group["description"].split("\n\n")[0].replace("\n", " ")
        parts.append(section(f"`recipe: {kind}`", group, f"`hf_pe.{recipe.__name__}`. {summary}\n\n"))
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
