import pytest

from hf_pe import DataConfig
from hf_pe.distill.schedule import Schedule
from hf_pe.errors import UsageError
from hf_pe.plans import OldSpellingWarning
from hf_pe.prune import StructuredPruning
from hf_pe.prune.sizes.budget import Budget
from hf_pe.recipes import RECIPES
from hf_pe.settings import Settings


@pytest.mark.parametrize("name", RECIPES)
def test_a_wrong_keyword_of_a_recipe_names_the_right_ones(name):
    field = next(field for field in RECIPES[name].model_fields if field != "recipe")
    with pytest.raises(UsageError) as refusal:
        RECIPES[name](**{f"{field}t": 1})
    message = str(refusal.value)
    assert f"{name}: {field}t: unknown key; expected one of recipe, {field}" in message
    assert f"Did you mean '{field}'?" in message and "pydantic" not in message


@pytest.mark.parametrize("name", RECIPES)
def test_a_value_of_a_wrong_type_names_what_was_expected(name):
    for field in RECIPES[name].model_fields:
        with pytest.raises(UsageError, match=rf"{name}: {field}\b") as refusal:
            RECIPES[name](**{field: object()})
        assert "pydantic" not in str(refusal.value) and refusal.value.__suppress_context__


@pytest.mark.parametrize("holder", [Budget, DataConfig, Schedule])
def test_settings_inside_recipes_are_refused_in_the_same_way(holder):
    with pytest.raises(UsageError, match=rf"(?m)^{holder.__name__}: lat: unknown key; expected one of"):
        holder(lat=1)


def test_wrong_values_inside_are_located_and_all_are_named():
    with pytest.raises(UsageError) as refusal:
        StructuredPruning(budget={"latncy": 5.0}, round_to="many")
    lines = str(refusal.value).splitlines()
    assert lines[0].startswith("prune: budget.latncy: unknown key; expected one of parameters, flops")
    assert lines[1] == "prune: round_to: expected a valid integer, unable to parse string as an integer; got 'many'."


def test_the_warning_of_an_old_spelling_points_at_the_call():
    with pytest.warns(OldSpellingWarning) as warned:
        StructuredPruning(keep={"ffn": 0.5}, repair="none")
    assert warned[0].filename == __file__


def test_a_refused_dictionary_is_still_a_validation_error_for_those_who_read_files():
    class Shape(Settings):
        width: int

    with pytest.raises(ValueError, match="Extra inputs"):
        Shape.model_validate({"width": 2, "widht": 2})
