"""What tests of extensions share: an entry in a list, and recipe files that name it."""

import pytest
import yaml

from hf_pe.recipe_file import RecipeFile
from tests.helpers import TEXTS


@pytest.fixture
def register(monkeypatch):
    """Add an entry to a list that the fields of recipe files are made from; it is gone afterwards."""

    def add(registry, name, entry):
        monkeypatch.setitem(registry, name, entry)
        RecipeFile.model_rebuild(force=True)

    yield add
    monkeypatch.undo()
    RecipeFile.model_rebuild(force=True)


@pytest.fixture
def write_recipe(tmp_path):
    """Write a recipe file over the example texts, and return it."""

    def write(model, *recipes, task="embedding", **data):
        texts, path = tmp_path / "texts.txt", tmp_path / "recipe.yaml"
        texts.write_text("\n".join(TEXTS))
        content = {"model": str(model), "data": {"train": str(texts), **data}, "task": task, "recipes": [*recipes]}
        path.write_text(yaml.safe_dump(content))
        return path

    return write
