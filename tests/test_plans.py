import pytest
from pydantic import ValidationError

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


def test_a_plan_is_frozen_and_refuses_what_it_does_not_know():
    with pytest.raises(ValidationError):
        PLAN.recipe = "other"
    with pytest.raises(ValidationError):
        Plan.model_validate({**PLAN.model_dump(), "surprise": 1})
    with pytest.raises(ValidationError):
        Plan.model_validate({**PLAN.model_dump(), "format_version": 2})
