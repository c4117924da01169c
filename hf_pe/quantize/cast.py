"""Define the recipe that casts all weights to a 16-bit dtype."""

import copy
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field

from hf_pe.measure import spec_sizes
from hf_pe.model_spec import ModelSpec
from hf_pe.plans import Plan
from hf_pe.recipe import Recipe, StageState
from hf_pe.surgery import cast


class Cast(Recipe):
    """Store and run the weights in 16 bits: half the bytes of float32 on any hardware that supports the dtype."""

    tag = "half-precision"
    changes = "precision"
    needs_plain_weights = "quantized weights cannot be cast"

    recipe: Literal["cast"] = "cast"
    dtype: Literal["bfloat16", "float16"] = Field("bfloat16", description="dtype of all weights")

    def dry_run(self, spec: ModelSpec) -> tuple[Plan, ModelSpec]:
        """Return the sizes after casting, from the config alone."""
        config = copy.deepcopy(spec.config)
        config.dtype = getattr(torch, self.dtype)
        after = replace(spec, config=config)
        return self.planned(title=f"weights in {self.dtype}", exact=True, **spec_sizes(after)), after

    def plan(self, state: StageState) -> Plan:
        """Return the plan of the dry run, since the weights decide nothing."""
        return self.dry_run(state.spec)[0]

    def apply(self, state: StageState, plan: Plan) -> StageState:
        """Return a state with a cast copy of the model, equal to loading it in that dtype."""
        model = cast(state.model, getattr(torch, self.dtype))
        model.eval()
        return state.with_model(model)
