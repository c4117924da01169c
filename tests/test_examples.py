"""The examples in docstrings run and give what they say."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

import hf_pe

ROOT = Path(hf_pe.__file__).parent
MODULES = [
    ".".join(file.relative_to(ROOT.parent).with_suffix("").parts)
    for file in sorted(ROOT.rglob("*.py"))
    if ">>> " in file.read_text("utf-8")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings(name):
    assert doctest.testmod(import_module(name)).failed == 0


def test_losses_teachers_recipe_and_trainer_of_a_distillation_have_examples():
    groups = [f"losses.{group}" for group in ("logits", "embeddings", "hidden", "attention")]
    assert {f"hf_pe.distill.{name}" for name in (*groups, "recipe", "trainer", "teachers.load")} <= set(MODULES)
