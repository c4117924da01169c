"""Casting as a recipe: all weights to a 16-bit type."""

import copy
from dataclasses import replace
from typing import Literal

import torch
from transformers import PreTrainedModel

from hf_pe.measure import sketch_size
from hf_pe.model_spec import Sketch
from hf_pe.plans import Frozen, Plan
from hf_pe.surgery import cast
from hf_pe.tasks import TaskData


class Cast(Frozen):
    """Store and run the weights in 16 bits: half the bytes of float32 on any hardware that has the type."""

    recipe: Literal["cast"] = "cast"
    dtype: Literal["bfloat16", "float16"] = "bfloat16"

    def outline(self, sketch: Sketch) -> tuple[Plan, Sketch]:
        """Half the bytes, from the config alone."""
        config = copy.deepcopy(sketch.config)
        config.dtype = getattr(torch, self.dtype)
        after = replace(sketch, config=config)
        return Plan(recipe="cast", title=f"weights in {self.dtype}", exact=True, **sketch_size(after)), after

    def plan(self, model: PreTrainedModel, data: TaskData) -> Plan:
        """The outline: nothing is left to decide."""
        return self.outline(Sketch(config=model.config, model_class=type(model)))[0]

    def apply(self, model: PreTrainedModel, plan: Plan, data: TaskData) -> PreTrainedModel:
        """Cast a copy, as loading in that dtype would."""
        made = cast(model, getattr(torch, self.dtype))
        made.eval()
        return made
