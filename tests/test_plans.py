import pytest
from pydantic import ValidationError

from hf_pe.cli.display import plan_cells
from hf_pe.plans import Plan, SizeChange

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
