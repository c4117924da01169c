"""Defines the recipe that swaps a backbone: a compact body, weights that fit it, and a stitching layer to the head."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_serializer
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from hf_pe import progress
from hf_pe.anatomy import meta_model
from hf_pe.backbones.bottleneck_init import initialize_bottlenecks_
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
from hf_pe.weight_transfer import embeddings_for, narrow_embeddings_, random_init, start_from

MIN_SHARED_TOKENS = 0.05
"""Smallest fraction of the tokens that two tokenizers must have in common."""


class BackboneSwap(Recipe):
    """Put a compact backbone under the model's head, and keep its labels and preprocessing.

    The result is a stock model of the compact architecture. Without training, the stitching layer alone connects it to
    the head: let a `Distillation` follow.
    """

    tag = "backbone-swap"
    changes = "structure"
    needs_plain_weights = "the backbone of a quantized model cannot be exchanged"
    takes_custom_modules = False

    recipe: Literal["swap"] = "swap"
    to: str | None = Field(
        None,
        description="a preset (hf-pe swap MODEL --list), a model type, a Hub id or a folder; default: the model's own "
        "architecture with the values of `config`",
    )
    config: dict[str, Any] = Field(default_factory=dict, description="values of the backbone's config to change")
    part: str | None = Field(
        None, description="the sub-config that is exchanged alone: backbone_config (default where there is one), "
        "vision_config, text_config",
    )  # fmt: skip
    weights: bool = Field(True, description="false: begin with random weights, even where `to` has weights of its own")
    fit: bool = Field(True, description="fit a random body's linear bottlenecks to the original's feature maps")
    image_size: int | None = Field(
        None, ge=1, description="pixels a side of its images; default: the config's, else the processor's"
    )
    seed: int = Field(0, description="of the weights that are drawn at random")

    @field_serializer("to")
    def _nameable(self, to: str | None) -> str | None:
        """Return `to` as it may be printed, which is never a path."""
        return Path(to).name if to and Path(to).expanduser().exists() else to

    @property
    def reads_weights_of(self) -> str | None:
        """The Hub id or folder whose weights the backbone begins with; None where it begins with none."""
        return self.to if self.weights and not is_known_by_name(self.to) else None

    def dry_run(self, spec: ModelSpec) -> tuple[Plan, ModelSpec]:
        """Return the plan with the compact model's exact sizes, and its spec.

        Raises:
            UsageError: the backbone is unknown, does not fit, or is not smaller.
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
            notes=(*swap.notes, *self._initial_weights(spec.config, swap)),
            references=swap.references,
            **sizes,
        )
        return plan, after

    def models_read(self) -> tuple[ModelRead, ...]:
        """Return the model whose weights the backbone begins with."""
        return (ModelRead("the backbone", self.reads_weights_of),) if self.reads_weights_of else ()

    def plan(self, state: StageState) -> Plan:
        """Return the plan of the dry run, with the fraction of tokens that the two tokenizers have in common.

        Raises:
            UsageError: as `dry_run`; or the two tokenizers have hardly any token in common.
        """
        data, spec = state.data, state.spec
        plan = self.dry_run(spec)[0]
        tokenizer = self._other_tokenizer(self._swap_spec(spec), data)
        if tokenizer is None:
            return plan
        shared = embeddings_for(torch.zeros(len(tokenizer), 1), tokenizer, data.processor)[1]
        if shared < MIN_SHARED_TOKENS:
            raise UsageError(
                f"swap.to: the tokenizer of {self.to} shares {shared:.1%} of the tokens of yours, too few to reuse its "
                f"embeddings (expected {MIN_SHARED_TOKENS:.0%} or more). Choose a backbone of the same language, or "
                "weights: false."
            )
        note = f"{shared:.0%} of your tokens keep the backbone's embeddings, the others get the mean of their pieces'"
        return plan.model_copy(update={"notes": (*plan.notes, note)})

    def apply(self, state: StageState, plan: Plan) -> StageState:
        """Build the compact model, transfer weights, fit the stitching layer on the calibration rows and merge it.

        Returns:
            The state with a stock model in evaluation mode, which shares no memory with the one before.

        Raises:
            UsageError: the features have other positions than the head expects.
        """
        model, data = state.model, state.data
        swap = self._swap_spec(state.spec)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            new: PreTrainedModel = self._initialized(model, swap, data).to(model.device)  # type: ignore[arg-type]
        if self._fits_bottlenecks(model.config, swap):
            count = initialize_bottlenecks_(model, new, data, self.seed)
            if count:
                progress.say(f"{count} linear bottlenecks fitted to the original's feature maps")
        new = in_dtype(new, model.dtype)
        recalibrate_batch_norms_(new, data)
        for point in swap.stitch_points:  # one after the other: the outputs of one may be inputs of the next
            stitching = fit_stitching_layer(model, new, point, data)
            merge_(model.get_submodule(point.old), new.get_submodule(point.new), stitching)
            progress.say(
                f"stitching layer at {point.new}: explains {stitching.explained:.0%} of the features' variance"
            )
        new.config._name_or_path = model.config._name_or_path
        new.eval()
        return state.with_model(new)

    def _swap_spec(self, spec: ModelSpec) -> SwapSpec:
        """Return the spec of the swap, for images of the recipe's size, else the config's, else the processor's."""
        pixels = spec.pixels if image_size(spec.config) is None else None
        size = self.image_size or (pixels if pixels is None or isinstance(pixels, int) else min(pixels))
        return resolve_swap(spec.config, spec.model_class, self.to, self.config, self.part, size)

    def _fits_bottlenecks(self, config: PretrainedConfig, swap: SwapSpec) -> bool:
        """Return whether the whole body is new, random, and reads images."""
        is_random = not (swap.source and self.weights) and not _same_width(config, swap.config)
        return self.fit and is_random and not swap.prefix and input_kind(swap.model_class) == "pixel_values"

    def _initialized(self, model: PreTrainedModel, swap: SwapSpec, data: TaskData) -> PreTrainedModel:
        """Return the compact model with all weights that can be transferred; random elsewhere."""
        source = swap.source if self.weights else None
        if swap.prefix:
            new = random_init(swap.model_class, swap.config)
            if source:
                part: Any = new.get_submodule(swap.prefix)
                part.load_state_dict(load_model(source, type(part), config=part.config).state_dict())
            state = model.state_dict().items()
            _fill_(new, {name: tensor for name, tensor in state if not name.startswith(swap.prefix + ".")})
            return new
        tokenizer = self._other_tokenizer(swap, data)
        if source and tokenizer is not None:
            loaded = load_model(source, swap.model_class, new_head=True)
            new = random_init(swap.model_class, swap.config)
            _fill_(new, loaded.state_dict())
            tables: list[Any] = [m.get_input_embeddings() for m in (loaded, new)]
            embeddings = embeddings_for(tables[0].weight.detach(), tokenizer, data.processor)[0]
            tables[1].weight.data[: len(embeddings)] = embeddings
            return new
        if source:
            return load_model(source, swap.model_class, config=swap.config, new_head=True)
        new = random_init(swap.model_class, swap.config)
        if _same_width(model.config, swap.config):
            start_from(model, new)
        elif model.main_input_name == "input_ids":
            narrow_embeddings_(model, new)
        return new

    def _other_tokenizer(self, swap: SwapSpec, data: TaskData) -> Any:
        """Return the backbone's tokenizer, where it has weights and its tokens differ from those of the user's."""
        if not (swap.source and self.weights and hasattr(data.processor, "get_vocab")):
            return None
        tokenizer = load_processor(swap.source)
        return None if tokenizer.get_vocab() == data.processor.get_vocab() else tokenizer

    def _title(self, config: PretrainedConfig, swap: SwapSpec) -> str:
        name = swap.source.name if swap.source else self.to or "a smaller one"
        values = ", ".join(f"{key} {value}" for key, value in self.config.items())
        exchanged = f"{self.part or 'backbone'} of {config.model_type}"
        return f"backbone swap: {exchanged} to {name}" + (f" ({values})" if values else "")

    def _initial_weights(self, config: PretrainedConfig, swap: SwapSpec) -> tuple[str, ...]:
        """Return notes for the plan on the weights that the new body begins with."""
        heads = ", ".join(point.new for point in swap.stitch_points)
        weights = (
            f"weights of {swap.source.name}"
            if swap.source and self.weights
            else "the original's parameters where shapes allow"
            if not swap.prefix and _same_width(config, swap.config)
            else "the original's embeddings along their principal components; its layers are random"
            if not swap.prefix and swap.model_class.main_input_name == "input_ids"
            else "random weights; its linear bottlenecks, if it has any, are fitted to the original's feature maps"
            if self._fits_bottlenecks(config, swap)
            else "random weights"
        )
        return (f"the body begins with {weights}", *((f"stitching layer merged into {heads}",) if heads else ()))


def _fill_(model: PreTrainedModel, state: Mapping[str, torch.Tensor]) -> None:
    """Copy the tensors that `state` has under the same name and in the same shape."""
    for name, tensor in model.state_dict().items():
        if name in state and tensor.shape == state[name].shape:
            tensor.copy_(state[name])


def _same_width(first: PretrainedConfig, second: PretrainedConfig) -> bool:
    """Return whether both are configs of transformers of the same width, so that layers can be copied."""
    width, second_width = (getattr(config, "hidden_size", None) for config in (first, second))
    have_heads = all(isinstance(getattr(c, "num_attention_heads", None), int) for c in (first, second))
    return have_heads and width is not None and width == second_width


def recalibrate_batch_norms_(model: PreTrainedModel, data: TaskData) -> None:
    """Compute the running statistics of batch norms anew from the calibration rows; nothing else changes.

    Those of a random body are meaningless, and those of a pretrained one are of other images (Li et al. 2016,
    arXiv:1603.04779).
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momentums = [norm.momentum for norm in norms]
    rows = data.calibration
    if len(rows) % BATCH == 1:  # a batch of one row may have a single position, which has no variance
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
        for norm, momentum in zip(norms, momentums, strict=True):
            norm.momentum = momentum
        model.eval()
