import pytest
from pydantic import ValidationError

from hf_pe.cli.display import plan_cells
from hf_pe.distill import Distillation
from hf_pe.plans import OldSpellingWarning, Plan, SizeChange
from hf_pe.prune import StructuredPruning
from hf_pe.quantize import BitsAndBytesQuantization

PLAN = Plan(
    recipe="prune",
    title="structured pruning",
    sizes=(SizeChange(axis="ffn", before=8, after=4),),
    kept={"ffn": {"layer.0": [0, 2, 4, 6]}},
    parameters=100,
    parameters_without_embeddings=60,
    weight_bytes=400,
    exact=True,
)


def test_a_plan_round_trips_through_json():
    assert Plan.model_validate_json(PLAN.model_dump_json()) == PLAN


def test_sizes_may_differ_from_group_to_group():
    """Then a plan states each; what is the same everywhere is one number, as in the plans of older versions."""
    sizes = {"layer.0": 4, "layer.1": 6, "layer.2": 6}
    change = SizeChange(axis="ffn", before=8, after=sizes)
    plan = PLAN.model_copy(update={"sizes": (change,)})
    assert Plan.model_validate_json(plan.model_dump_json()).sizes[0].after == sizes
    assert change.shown == "4 to 6" and change.sizes == (4, 6, 6)
    uniform = SizeChange.model_validate({"axis": "ffn", "before": 8, "after": dict.fromkeys(sizes, 4)})
    assert uniform == PLAN.sizes[0] and uniform.shown == "4" and uniform.sizes == (4,)
    assert PLAN.model_dump(mode="json")["sizes"] == [{"axis": "ffn", "before": 8, "after": 4}]
    assert "ffn 8 -> 4 to 6" in plan_cells(plan)


@pytest.mark.parametrize("after", [{}, {"layer.0": "many"}, None, [4]])
def test_a_size_that_is_none_is_refused(after):
    with pytest.raises(ValidationError):
        SizeChange.model_validate({"axis": "ffn", "before": 8, "after": after})


def test_a_plan_is_frozen_and_refuses_what_it_does_not_know():
    with pytest.raises(ValidationError):
        PLAN.recipe = "other"
    with pytest.raises(ValidationError):
        Plan.model_validate({**PLAN.model_dump(), "surprise": 1})
    with pytest.raises(ValidationError):
        Plan.model_validate({**PLAN.model_dump(), "format_version": 2})


FFN = {"keep": {"ffn": 0.5}}


@pytest.mark.parametrize(
    ("recipe", "old", "new", "spellings"),
    [
        (StructuredPruning, {"target": {"bytes": 0.5}}, {"budget": {"bytes": 0.5}}, ["'target'", "'budget'"]),
        (StructuredPruning, FFN | {"repair": "none"}, FFN | {"refit": "none"}, ["'repair'", "'refit'"]),
        (StructuredPruning, FFN | {"refit": "in_order"}, FFN | {"refit": "sequential"}, ["'refit: sequential'"]),
        (StructuredPruning, FFN | {"multiple": 16}, FFN | {"round_to": 16}, ["'multiple'", "'round_to'"]),
        (StructuredPruning, FFN | {"criterion": "surgeon"}, FFN | {"criterion": "obs_kfac"}, ["'criterion: obs_kfac'"]),
        (BitsAndBytesQuantization, {"drift": 0.1}, {"max_kl": 0.1}, ["quantize: 'drift'", "'max_kl'"]),
        (BitsAndBytesQuantization, {"repair": "gptq"}, {"refit": "gptq"}, ["'repair'", "'refit'"]),
        (Distillation, {"accumulate": 4}, {"gradient_accumulation_steps": 4}, ["'gradient_accumulation_steps'"]),
        (Distillation, {"cache": {"k": 8}}, {"cache": {"top_k": 8}}, ["cache: 'k'", "'top_k'"]),
    ],
)
def test_old_spellings_are_read_with_a_warning_that_names_the_new_one(recipe, old, new, spellings):
    with pytest.warns(OldSpellingWarning) as warned:
        assert recipe.model_validate(old) == recipe.model_validate(new)
    messages = " ".join(str(each.message) for each in warned)
    assert all(spelling in messages for spelling in spellings)


def test_a_key_by_its_old_and_its_new_name_is_refused():
    with pytest.raises(ValidationError, match=r"'repair' is the old name of 'refit', and both are given\. Leave out"):
        StructuredPruning.model_validate({"keep": {"ffn": 0.5}, "repair": "none", "refit": "none"})


def test_plans_with_keys_of_before_are_read():
    older = PLAN.model_dump(mode="json")
    older["unpacked"], older["form"] = ["lm_head"], {"separable": {"stem": 1}}
    del older["modules_to_not_convert"], older["custom_modules"]
    plan = Plan.model_validate(older)
    assert plan.modules_to_not_convert == ("lm_head",) and plan.custom_modules.separable == {"stem": 1}
