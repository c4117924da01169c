"""Recipe files: YAML that pydantic reads into the same objects that Python users build."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from hf_pe.checkpoints.source import Dtype, Source, resolve
from hf_pe.data import DataConfig
from hf_pe.errors import UsageError
from hf_pe.files.yaml_files import DuplicateKeyError, load_yaml
from hf_pe.hub import Publish
from hf_pe.recipes import RECIPES, AnyRecipe, AnyVariant
from hf_pe.run.order import check_order
from hf_pe.settings import Settings, wrong_values
from hf_pe.tasks import TaskName


class RecipeFile(Settings):
    """A run: the model to make smaller, the recipes, the data, and where to write the result."""

    format_version: Literal[1] = 1
    model: str = Field(description="Hub id, folder, .gguf file, or package:NAME/inner/path")
    processor: str | None = Field(
        None,
        description="the tokenizer or processor, if it is not beside `model`: folder, Hub id, package:NAME",
    )
    base_model: str | None = Field(
        None,
        description="Hub id of the model that `model` is a copy or a fine-tune of, for the card; needed only where "
        "`model` is no Hub id",
    )
    license: str | None = Field(None, description="licence of the original, where its card does not state it")
    task: TaskName | None = Field(None, description="default: by the model's class")
    data: DataConfig = Field(description="where the examples come from and how they are read; see below")
    recipes: tuple[AnyRecipe, ...] = Field(description="in order: prune or swap, separate, distil, quantize or cast")
    variants: dict[str, AnyVariant] = Field(
        default_factory=dict, description="quantized or 16-bit copies of the final model, by name"
    )
    publish: Publish | None = Field(None, description="push the result to the Hub when it is done")
    output: str | None = Field(None, description="folder of the result; default: build/NAME of the recipe file")
    seed: int = Field(0, description="of everything random")
    dtype: Dtype | None = Field(
        None, description="dtype of the loaded weights; default: as stored, bfloat16 for a quantized .gguf file"
    )
    trust_remote_code: bool = Field(False, description="run code that comes with the model")
    allow_pickle: bool = Field(False, description="load weights from pickles, which can run code")

    def source(self) -> Source:
        """Return where the model is; see `checkpoints.source.resolve`."""
        return resolve(
            self.model, dtype=self.dtype, trust_remote_code=self.trust_remote_code, allow_pickle=self.allow_pickle
        )


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> RecipeFile:
    """Read a recipe file.

    Args:
        path: the file.
        overrides: values in place of those in the file, as "key.inner=value" in YAML; items of lists by number.

    Raises:
        UsageError: the file does not exist or is no YAML; a key occurs twice or does not exist; a value has a wrong
            type or is out of range; the recipes cannot follow each other; or the name of a variant is taken. The
            message names all wrong values, each with what was expected.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"Recipe file {path} does not exist.")
    try:
        content = load_yaml(path.read_text("utf-8-sig"))
    except DuplicateKeyError as error:
        raise UsageError(f"{path}: {error.problem} Keep one of the two.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no YAML: {error}. Compare it with one of the files in recipes/.") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror or error}).") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: expected keys such as model, data and recipes; got {type(content).__name__}.")
    for override in overrides:
        _override(content, override)
    try:
        recipe = RecipeFile.model_validate(content)
    except ValidationError as error:
        lines = (f"  {line}" for line in wrong_values(error, RecipeFile, RECIPES))
        raise UsageError("\n".join([f"{path}:", *lines])) from error
    check_order(recipe.recipes, recipe.variants)
    if recipe.publish and recipe.publish.branch in recipe.variants:
        raise UsageError(
            f"publish.branch: '{recipe.publish.branch}' is the branch of the variant with that name. Choose another "
            "branch for the main result, or rename the variant."
        )
    return recipe


def json_schema() -> str:
    """Return the JSON schema of recipe files, for editors."""
    return json.dumps(RecipeFile.model_json_schema(), indent=2) + "\n"


def _override(content: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--set {text}: expected key=value, such as data.limit=1000 or recipes.0.keep.ffn=0.5.")
    *parents, last = [int(p) if p.isdigit() else p for p in key.split(".")]
    holder: Any = content
    try:
        for part in parents:
            holder = holder[part] if isinstance(part, int) else holder.setdefault(part, {})
        holder[last] = load_yaml(value)
    except DuplicateKeyError as error:
        raise UsageError(f"--set {text}: {error.problem} Keep one of the two.") from error
    except yaml.YAMLError as error:
        raise UsageError(f"--set {text}: the value is no YAML: {error}") from error
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise UsageError(f"--set {text}: there is no '{key}' in this recipe.") from error
