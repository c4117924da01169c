"""Swapping the backbone as a recipe: a compact body, what can be taken over, and a bridge folded into the head."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_serializer
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from hf_pe import progress
from hf_pe.anatomy import skeleton
from hf_pe.backbones.bottleneck_init import grow_
from hf_pe.backbones.resolve import Target, is_known_by_name, target_of
from hf_pe.checkpoints.load import load_model
from hf_pe.checkpoints.processor import load_processor
from hf_pe.dummies.inputs import reads
from hf_pe.dummies.sizes import image_size
from hf_pe.errors import UsageError
from hf_pe.measure import parameters, spec_sizes
from hf_pe.model_spec import ModelSpec
from hf_pe.plans import Plan
from hf_pe.recipe import ModelRead, Recipe, StageState
from hf_pe.stitching import BATCH, fitted, fold_
from hf_pe.surgery import in_dtype
from hf_pe.tasks import TaskData, model_inputs, on_device
from hf_pe.weight_transfer import drawn, narrower_tables_, start_from, translated

FEWEST = 0.05
"""Share of tokens that two tokenizers must have in common."""


class BackboneSwap(Recipe):
    """Put a compact backbone under the head, the labels and the preprocessing that are there.

    The result is a stock model of the compact architecture. Without training it answers by the bridge alone: let a
    `Distillation` follow.
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
        target = self._target(spec)
        after = ModelSpec(config=target.config, model_class=target.model_class, pixels=spec.pixels)
        before = parameters(skeleton(spec.config, spec.model_class)).total
        sizes = spec_sizes(after)
        if sizes["parameters"] >= before:
            raise UsageError(
                f"swap.to: expected a model of fewer than {before:,} parameters, got {sizes['parameters']:,} "
                f"({target.model_class.__name__}). `hf-pe swap MODEL --list` shows presets with their sizes."
            )
        plan = self.planned(
            title=self._title(spec.config, target),
            exact=True,
            notes=(*target.notes, *self._taken_over(spec.config, target)),
            references=target.references,
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
        theirs = self._other_tokenizer(self._target(spec), data)
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
        """Build the compact model, take over what fits, fit the bridge on the calibration rows and fold it.

        Returns:
            A stock model in evaluation mode; shares no memory with `model`.

        Raises:
            UsageError: the features stand at other places than the head expects.
        """
        model, data = state.model, state.data
        target = self._target(state.spec)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            new: PreTrainedModel = self._started(model, target, data).to(model.device)  # type: ignore[arg-type]
        if self._grows(model.config, target) and (count := grow_(model, new, data, self.seed)):
            progress.say(f"{count} linear bottlenecks fitted to the original's feature maps")
        new = in_dtype(new, model.dtype)
        settle_(new, data)
        for seam in target.seams:  # one after the other: what one gives may flow into the next
            bridge = fitted(model, new, seam, data)
            fold_(model.get_submodule(seam.old), new.get_submodule(seam.new), bridge)
            progress.say(f"bridge to {seam.new}: explains {bridge.explained:.0%} of the features' variance")
        new.config._name_or_path = model.config._name_or_path
        new.eval()
        return state.with_model(new)

    def _target(self, spec: ModelSpec) -> Target:
        """What the model becomes, for images as they are: the recipe's size, the config's, the processor's."""
        given = spec.pixels if image_size(spec.config) is None else None
        size = self.image_size or (given if given is None or isinstance(given, int) else min(given))
        return target_of(spec.config, spec.model_class, self.to, self.config, self.part, size)

    def _grows(self, config: PretrainedConfig, target: Target) -> bool:
        """Whether the body is one of images, whole, and random."""
        random = not (target.source and self.weights) and not _alike(config, target.config)
        return self.fit and random and not target.prefix and reads(target.model_class) == "pixel_values"

    def _started(self, model: PreTrainedModel, target: Target, data: TaskData) -> PreTrainedModel:
        """The compact model with what can be taken over; random elsewhere."""
        source = target.source if self.weights else None
        if target.prefix:
            new = drawn(target.model_class, target.config)
            if source:
                part: Any = new.get_submodule(target.prefix)
                part.load_state_dict(load_model(source, type(part), config=part.config).state_dict())
            kept = model.state_dict().items()
            _fill_(new, {name: tensor for name, tensor in kept if not name.startswith(target.prefix + ".")})
            return new
        theirs = self._other_tokenizer(target, data)
        if source and theirs is not None:
            loaded = load_model(source, target.model_class, new_head=True)
            new = drawn(target.model_class, target.config)
            _fill_(new, loaded.state_dict())
            tables: list[Any] = [m.get_input_embeddings() for m in (loaded, new)]
            found = translated(tables[0].weight.detach(), theirs, data.processor)[0]
            tables[1].weight.data[: len(found)] = found
            return new
        if source:
            return load_model(source, target.model_class, config=target.config, new_head=True)
        new = drawn(target.model_class, target.config)
        if _alike(model.config, target.config):
            start_from(model, new)
        elif model.main_input_name == "input_ids":
            narrower_tables_(model, new)
        return new

    def _other_tokenizer(self, target: Target, data: TaskData) -> Any:
        """That of the backbone, where it has weights and reads other tokens than the user's tokenizer gives."""
        if not (target.source and self.weights and hasattr(data.processor, "get_vocab")):
            return None
        theirs = load_processor(target.source)
        return None if theirs.get_vocab() == data.processor.get_vocab() else theirs

    def _title(self, config: PretrainedConfig, target: Target) -> str:
        name = target.source.name if target.source else self.to or "a smaller one"
        values = ", ".join(f"{key} {value}" for key, value in self.config.items())
        where = f"{self.part or 'backbone'} of {config.model_type}"
        return f"backbone swap: {where} to {name}" + (f" ({values})" if values else "")

    def _taken_over(self, config: PretrainedConfig, target: Target) -> tuple[str, ...]:
        """For the plan: with what the new body begins."""
        bridge = ", ".join(seam.new for seam in target.seams)
        begins = (
            f"weights of {target.source.name}"
            if target.source and self.weights
            else "the original's parameters where shapes allow"
            if not target.prefix and _alike(config, target.config)
            else "the original's embedding tables, turned and narrowed; its layers are random"
            if not target.prefix and target.model_class.main_input_name == "input_ids"
            else "random weights; its linear bottlenecks, if it has any, are fitted to the original's feature maps"
            if self._grows(config, target)
            else "random weights"
        )
        return (f"the body begins with {begins}", *((f"bridge folded into {bridge}",) if bridge else ()))


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
