"""The recipe that swaps a backbone: a compact body, the weights that fit it, and a stitching layer before the head."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_serializer
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from hf_pe import progress
from hf_pe.anatomy import meta_model
from hf_pe.backbones.bottleneck_init import grow_
from hf_pe.backbones.resolve import SwapSpec, is_known_by_name, resolve_swap
from hf_pe.checkpoints.load import load_model
from hf_pe.checkpoints.processor import load_processor
from hf_pe.dummies.inputs import input_kind
from hf_pe.dummies.sizes import image_size
from hf_pe.errors import UsageError
from hf_pe.measure import parameters, spec_sizes
from hf_pe.model_spec import ModelSpec
from hf_pe.plans import Plan
from hf_pe.recipe import ModelRead, Recipe, StageState
from hf_pe.stitching import BATCH, fit_stitching_layer, merge_
from hf_pe.surgery import in_dtype
from hf_pe.tasks import TaskData, model_inputs, on_device
from hf_pe.weight_transfer import narrower_tables_, random_init, start_from, translated

FEWEST = 0.05
"""Share of tokens that two tokenizers must have in common."""


class BackboneSwap(Recipe):
    """Put a compact backbone under the head, the labels and the preprocessing that are there.

    The result is a stock model of the compact architecture. Without training, the stitching layer alone
    connects it to the head: let a `Distillation` follow.
    """

    tag = "backbone-swap"
    changes = "structure"
    needs_plain_weights = "the backbone of a packed model cannot be exchanged"
    takes_custom_modules = False

    recipe: Literal["swap"] = "swap"
    to: str | None = Field(
        None,
        description="a preset (hf-pe swap MODEL --list), a model type, a Hub id or a folder; default: the model's own "
        "architecture with the values of `config`",
    )
    config: dict[str, Any] = Field(default_factory=dict, description="values of its config to change")
    part: str | None = Field(
        None, description="the sub-config that is exchanged alone: backbone_config (default where there is one), "
        "vision_config, text_config",
    )  # fmt: skip
    weights: bool = Field(True, description="False: random ones, also where `to` brings its own")
    fit: bool = Field(True, description="a random body's linear bottlenecks are fitted to the original's feature maps")
    image_size: int | None = Field(
        None, ge=1, description="pixels a side that it will see; default: the config's, else the processor's"
    )
    seed: int = 0

    @field_serializer("to")
    def _nameable(self, to: str | None) -> str | None:
        """What may be printed: never a path."""
        return Path(to).name if to and Path(to).expanduser().exists() else to

    @property
    def reads_weights_of(self) -> str | None:
        """The Hub id or folder whose weights the backbone begins with; None where it begins with none."""
        return self.to if self.weights and not is_known_by_name(self.to) else None

    def dry_run(self, spec: ModelSpec) -> tuple[Plan, ModelSpec]:
        """The compact model's exact sizes.

        Raises:
            UsageError: the backbone is not known, does not fit, or is not smaller.
        """
        swap = self._swap_spec(spec)
        after = ModelSpec(config=swap.config, model_class=swap.model_class, pixels=spec.pixels)
        before = parameters(meta_model(spec.config, spec.model_class)).total
        sizes = spec_sizes(after)
        if sizes["parameters"] >= before:
            raise UsageError(
                f"swap.to: expected a model of fewer than {before:,} parameters, got {sizes['parameters']:,} "
                f"({swap.model_class.__name__}). `hf-pe swap MODEL --list` shows presets with their sizes."
            )
        plan = self.planned(
            title=self._title(spec.config, swap),
            exact=True,
            notes=(*swap.notes, *self._taken_over(spec.config, swap)),
            references=swap.references,
            **sizes,
        )
        return plan, after

    def models_read(self) -> tuple[ModelRead, ...]:
        """Return the model whose weights the backbone begins with."""
        return (ModelRead("the backbone", self.reads_weights_of),) if self.reads_weights_of else ()

    def plan(self, state: StageState) -> Plan:
        """Return the plan of the dry run, with the share of tokens that the two tokenizers have in common.

        Raises:
            UsageError: as `dry_run`; the two tokenizers share nothing.
        """
        data, spec = state.data, state.spec
        plan = self.dry_run(spec)[0]
        theirs = self._other_tokenizer(self._swap_spec(spec), data)
        if theirs is None:
            return plan
        shared = translated(torch.zeros(len(theirs), 1), theirs, data.processor)[1]
        if shared < FEWEST:
            raise UsageError(
                f"swap.to: the tokenizer of {self.to} shares {shared:.1%} of the tokens of yours, so its embeddings "
                f"tell nothing (expected {FEWEST:.0%} or more). Choose one of the same language, or weights: false."
            )
        note = f"{shared:.0%} of your tokens keep the backbone's embeddings, the others take those of their pieces"
        return plan.model_copy(update={"notes": (*plan.notes, note)})

    def apply(self, state: StageState, plan: Plan) -> StageState:
        """Build the compact model, take over what fits, fit the stitching layer on the calibration rows and fold it.

        Returns:
            A stock model in evaluation mode; shares no memory with `model`.

        Raises:
            UsageError: the features stand at other places than the head expects.
        """
        model, data = state.model, state.data
        swap = self._swap_spec(state.spec)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            new: PreTrainedModel = self._started(model, swap, data).to(model.device)  # type: ignore[arg-type]
        if self._grows(model.config, swap) and (count := grow_(model, new, data, self.seed)):
            progress.say(f"{count} linear bottlenecks fitted to the original's feature maps")
        new = in_dtype(new, model.dtype)
        settle_(new, data)
        for point in swap.stitch_points:  # one after the other: what one gives may flow into the next
            stitching = fit_stitching_layer(model, new, point, data)
            merge_(model.get_submodule(point.old), new.get_submodule(point.new), stitching)
            progress.say(
                f"stitching layer at {point.new}: explains {stitching.explained:.0%} of the features' variance"
            )
        new.config._name_or_path = model.config._name_or_path
        new.eval()
        return state.with_model(new)

    def _swap_spec(self, spec: ModelSpec) -> SwapSpec:
        """What the model becomes, for images as they are: the recipe's size, the config's, the processor's."""
        given = spec.pixels if image_size(spec.config) is None else None
        size = self.image_size or (given if given is None or isinstance(given, int) else min(given))
        return resolve_swap(spec.config, spec.model_class, self.to, self.config, self.part, size)

    def _grows(self, config: PretrainedConfig, swap: SwapSpec) -> bool:
        """Whether the body is one of images, whole, and random."""
        random = not (swap.source and self.weights) and not _alike(config, swap.config)
        return self.fit and random and not swap.prefix and input_kind(swap.model_class) == "pixel_values"

    def _started(self, model: PreTrainedModel, swap: SwapSpec, data: TaskData) -> PreTrainedModel:
        """The compact model with what can be taken over; random elsewhere."""
        source = swap.source if self.weights else None
        if swap.prefix:
            new = random_init(swap.model_class, swap.config)
            if source:
                part: Any = new.get_submodule(swap.prefix)
                part.load_state_dict(load_model(source, type(part), config=part.config).state_dict())
            kept = model.state_dict().items()
            _fill_(new, {name: tensor for name, tensor in kept if not name.startswith(swap.prefix + ".")})
            return new
        theirs = self._other_tokenizer(swap, data)
        if source and theirs is not None:
            loaded = load_model(source, swap.model_class, new_head=True)
            new = random_init(swap.model_class, swap.config)
            _fill_(new, loaded.state_dict())
            tables: list[Any] = [m.get_input_embeddings() for m in (loaded, new)]
            found = translated(tables[0].weight.detach(), theirs, data.processor)[0]
            tables[1].weight.data[: len(found)] = found
            return new
        if source:
            return load_model(source, swap.model_class, config=swap.config, new_head=True)
        new = random_init(swap.model_class, swap.config)
        if _alike(model.config, swap.config):
            start_from(model, new)
        elif model.main_input_name == "input_ids":
            narrower_tables_(model, new)
        return new

    def _other_tokenizer(self, swap: SwapSpec, data: TaskData) -> Any:
        """That of the backbone, where it has weights and reads other tokens than the user's tokenizer gives."""
        if not (swap.source and self.weights and hasattr(data.processor, "get_vocab")):
            return None
        theirs = load_processor(swap.source)
        return None if theirs.get_vocab() == data.processor.get_vocab() else theirs

    def _title(self, config: PretrainedConfig, swap: SwapSpec) -> str:
        name = swap.source.name if swap.source else self.to or "a smaller one"
        values = ", ".join(f"{key} {value}" for key, value in self.config.items())
        where = f"{self.part or 'backbone'} of {config.model_type}"
        return f"backbone swap: {where} to {name}" + (f" ({values})" if values else "")

    def _taken_over(self, config: PretrainedConfig, swap: SwapSpec) -> tuple[str, ...]:
        """For the plan: with what the new body begins."""
        stitching = ", ".join(point.new for point in swap.stitch_points)
        begins = (
            f"weights of {swap.source.name}"
            if swap.source and self.weights
            else "the original's parameters where shapes allow"
            if not swap.prefix and _alike(config, swap.config)
            else "the original's embedding tables, turned and narrowed; its layers are random"
            if not swap.prefix and swap.model_class.main_input_name == "input_ids"
            else "random weights; its linear bottlenecks, if it has any, are fitted to the original's feature maps"
            if self._grows(config, swap)
            else "random weights"
        )
        return (f"the body begins with {begins}", *((f"stitching layer merged into {stitching}",) if stitching else ()))


def _fill_(model: PreTrainedModel, state: Mapping[str, torch.Tensor]) -> None:
    """Copy what `state` has under the same name and in the same shape."""
    for name, tensor in model.state_dict().items():
        if name in state and tensor.shape == state[name].shape:
            tensor.copy_(state[name])


def _alike(one: PretrainedConfig, other: PretrainedConfig) -> bool:
    """Whether layers of one can begin as layers of the other: transformers of the same width."""
    widths = [getattr(c, "hidden_size", None) for c in (one, other)]
    heads = all(isinstance(getattr(c, "num_attention_heads", None), int) for c in (one, other))
    return heads and widths[0] is not None and widths[0] == widths[1]


def settle_(model: PreTrainedModel, data: TaskData) -> None:
    """Let batch norms take their running statistics from the calibration rows; nothing else changes.

    Those of a random body say nothing, those of a pretrained one speak of other images (Li et al. 2016,
    arXiv:1603.04779).
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    were = [norm.momentum for norm in norms]
    rows = data.calibration
    if len(rows) % BATCH == 1:  # of one row at one place there is no variance
        rows = rows.select(range(len(rows) - 1))
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    try:
        with torch.no_grad():
            for batch in data.batches(rows, BATCH):
                model(**on_device(model, model_inputs(batch)))
    finally:
        for norm, momentum in zip(norms, were, strict=True):
            norm.momentum = momentum
        model.eval()
