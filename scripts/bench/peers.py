"""Turn the choices of other tools, computed by their own code, into kept units, so that hf_pe cuts the same model."""

import copy
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_pe.anatomy import Axis, discover
from hf_pe.dummies.inputs import example_inputs
from hf_pe.dummies.outputs import no_cache
from hf_pe.model_spec import ModelSpec
from hf_pe.plans import Plan
from hf_pe.prune import StructuredPruning
from hf_pe.prune.sizes.allowed import candidate_sizes, kept_sizes, resized_spec
from hf_pe.prune.sizes.costs import Costs
from hf_pe.prune.sizes.search import first_fitting
from hf_pe.prune.statistics.moments import consumer_moments
from hf_pe.recipe import StageState
from hf_pe.regression import Moments, pooled
from hf_pe.tasks import TaskData

Kept = dict[str, dict[str, list[int]]]
"""Map each axis to its blocks, and each block to the units that stay."""
CutModel = tuple[str, Any, PreTrainedModel]
"""A method's name, which of its settings this is, and the model that it made."""
TORCH_PRUNING = ("Torch-Pruning magnitude", "Torch-Pruning Taylor")


def torch_pruning_choices(model: Any, axis: Axis, size: int, inputs: dict[str, torch.Tensor]) -> dict[str, list[Kept]]:
    """Return Torch-Pruning's choices of `size` units of each block, a small grid each, by its graph and importances.

    A unit of many places (a head) has the mean importance of its places in all maps that write it.

    Args:
        model: is not changed; its gradients are what Taylor looks at.
        axis: of the FFN width, or of heads.
        size: units that stay in each block.
        inputs: an example to trace.
    """
    import torch_pruning as tp

    graph = tp.DependencyGraph().build_dependency(model, example_inputs=inputs, forward_fn=_forward)
    groups: dict[str, list[Any]] = {}
    for group in axis.groups:
        writing = [s for s in axis.in_group(group) if s.dim == 0 and s.name.endswith("weight")]
        for slot in writing if axis.kind.name == "heads" else writing[:1]:
            layer = model.get_submodule(slot.name.rpartition(".")[0])
            places = list(range(layer.out_features))
            groups.setdefault(group, []).append(graph.get_pruning_group(layer, tp.prune_linear_out_channels, places))

    def choice(importance: Any) -> Kept:
        kept = {}
        for name, parts in groups.items():
            scores = torch.stack([importance(part).reshape(axis.size, -1).mean(1) for part in parts]).mean(0)
            kept[name] = sorted(scores.argsort(descending=True)[:size].tolist())
        return {axis.name: kept}

    ways = ("mean", "max")
    magnitude, taylor = TORCH_PRUNING
    return {
        magnitude: [
            choice(tp.importance.GroupMagnitudeImportance(p=p, group_reduction=way)) for p in (1, 2) for way in ways
        ],
        taylor: [
            choice(tp.importance.GroupTaylorImportance(group_reduction=way, multivariable=many))
            for way in ways
            for many in (False, True)
        ],
    }


def with_gradients(model: Any, data: TaskData, loss: Any) -> None:
    """Add up the gradients of `loss(model, batch)` over the calibration rows."""
    model.zero_grad()
    for batch in data.batches(data.calibration, 4):
        loss(model, batch).backward()


def cut_to(model: Any, kept: Kept, data: TaskData, refit: str = "none") -> Any:
    """Return the model cut to the units `kept`, refitted by `refit`."""
    plan = Plan(
        recipe="prune", title="", kept=kept, parameters=0, parameters_without_embeddings=0, weight_bytes=0, exact=True
    )
    return StructuredPruning(keep={"ffn": 0.5}, refit=refit).apply(StageState(model, data), plan).model


def weighted_fluctuation(moments: Moments, weight: torch.Tensor) -> torch.Tensor:
    """Return FLAP's metric (An et al. 2024, arXiv:2312.11983, eq. 5) of each input of weights [outputs, inputs]."""
    mean = moments.x / moments.count
    return (moments.gram.diagonal() - mean.square()) * weight.square().sum(0)


def fluctuation(model: Any, axis: Axis, size: int, data: TaskData, *, ours: bool = False) -> Any:
    """Cut by FLAP's metric with its bias compensation (An et al. 2024, arXiv:2312.11983, eq. 4 to 6), written anew.

    A unit's score is the variance of its activation times the squared norm of the weights that read it; what removed
    units gave on average goes into the bias, or `ours` repairs in the place of that.
    """
    moments = {name: pooled(folds) for name, folds in consumer_moments(model, axis, data).items()}
    kept, shifts = {}, {}
    for slot in (s for s in axis.slots if s.consumes):
        inputs, layer = moments[slot.name], slot.name.rpartition(".")[0]
        mean = inputs.x / inputs.count
        weight = model.get_submodule(layer).weight.data.movedim(slot.dim, 1)
        score = weighted_fluctuation(inputs, weight)
        units = score.reshape(axis.size, -1).mean(1).topk(size).indices
        kept[slot.group] = sorted(units.tolist())
        gone = torch.ones(len(score), dtype=torch.bool)
        gone[slot.layout.positions(units, axis.size)] = False
        shifts[layer] = weight[:, gone] @ mean[gone]
    if ours:
        return cut_to(model, {axis.name: kept}, data, "least_squares")
    small = cut_to(model, {axis.name: kept}, data)
    for layer, shift in shifts.items():
        small.get_submodule(layer).bias.data += shift
    return small


@functools.cache
def shapes(model: PreTrainedModel, share: float) -> list[tuple[int, int]]:
    """Return depths, each with the widest FFN that leaves 1 - share of the parameters outside embeddings."""
    spec = ModelSpec(config=model.config, model_class=type(model))
    costs = Costs(spec)
    fitting = []
    for depth in range(1, model.config.num_hidden_layers + 1):
        path = [{"layers": depth, **rung} for rung in candidate_sizes(spec, "ffn", 8)]
        widest = first_fitting(path, lambda s: costs.fraction("parameters", resized_spec(spec, s)) <= 1 - share)
        if widest is not None:
            fitting.append((depth, path[widest]["ffn"]))
    return fitting


BY_DEPTH = "block influence (reimplementation of ShortGPT)"
BY_FLUCTUATION = "fluctuation with bias compensation (reimplementation of FLAP)"
REPAIRED = " + our repair"


def deep_and_narrow(  # noqa: C901  one step after the other
    model: PreTrainedModel,
    data: TaskData,
    share: float,
    loss: Callable[[Any, Any], torch.Tensor],
    chosen: Mapping[str, Any],
) -> Iterator[CutModel]:
    """Remove `share` of the parameters outside embeddings by each tool, as it is and with our repair.

    Every depth (by block influence, as ShortGPT) with the FFN width that fits; for those in `chosen` the depth they
    name alone. `loss(model, batch)` is what gradients are taken of.
    """
    for depth, width in shapes(model, share):

        def asked(name: str, depth: int = depth) -> bool:
            return chosen.get(name, depth) == depth

        shorter = model
        if depth < model.config.num_hidden_layers:
            recipe = StructuredPruning(keep={"layers": depth}, refit="none")
            plan = recipe.plan(StageState(model, data))
            shorter = recipe.apply(StageState(model, data), plan).model
        if width == model.config.intermediate_size:
            yield BY_DEPTH, depth, shorter
            yield (
                BY_DEPTH + REPAIRED,
                depth,
                recipe.model_copy(update={"refit": "sequential"}).apply(StageState(model, data), plan).model,
            )
            continue
        axis = discover(shorter.config, type(shorter)).named("ffn")[0]
        tools = [name for name in TORCH_PRUNING if asked(name) or asked(name + REPAIRED)]
        if tools:
            graded = copy.deepcopy(shorter)
            with_gradients(graded, data, loss)
            choices = torch_pruning_choices(graded, axis, width, example_inputs(shorter, batch=1, length=8))
        for name in tools:
            for suffix, repair in (("", "none"), (REPAIRED, "least_squares")):
                if asked(name + suffix):
                    yield name + suffix, depth, cut_to(shorter, choices[name][0], data, repair)
        for suffix in ("", REPAIRED):
            if asked(BY_FLUCTUATION + suffix):
                small = fluctuation(shorter, axis, width, data, ours=bool(suffix))
                yield BY_FLUCTUATION + suffix, depth, small


def best_of(models: Iterable[CutModel], score: Callable[[Any], float]) -> dict[str, CutModel]:
    """Return for each method the model that scores highest."""
    best: dict[str, tuple[float, CutModel]] = {}
    for candidate in models:
        value = score(candidate[2])
        if candidate[0] not in best or value > best[candidate[0]][0]:
            best[candidate[0]] = (value, candidate)
    return {name: candidate for name, (_, candidate) in best.items()}


def ours_along_any(model: PreTrainedModel, data: TaskData, share: float) -> Iterator[CutModel]:
    """Remove the same share by hf_pe, which decides how much goes along which axis: repaired at once and in order."""
    recipe = StructuredPruning(
        budget={"parameters": 1 - share}, axes=("ffn", "layers"), criterion="obs_kfac", depth="greedy"
    )
    plan = recipe.plan(StageState(model, data))
    print("   ", {change.axis: change.after for change in plan.sizes}, flush=True)
    for refit in ("least_squares", "sequential"):
        yield "hf_pe", refit, recipe.model_copy(update={"refit": refit}).apply(StageState(model, data), plan).model


def ffn_size(model: Any, share: float) -> int:
    """Return how many units stay where `share` of the FFN width goes."""
    return kept_sizes(ModelSpec(config=model.config, model_class=type(model)), {"ffn": 1 - share}, 8)["ffn"]


def by_peers(
    choices: dict[str, list[Kept]],
    model: Any,
    data: TaskData,
    badness: Callable[[Any], float],
    chosen: dict[str, int],
) -> Iterator[tuple[str, Any]]:
    """Yield the best of each tool's grid by `badness` on other data, as it is and with our repair.

    `chosen` remembers which it was, so that later calibration sets need not try again.
    """
    for name, grid in choices.items():
        if name not in chosen:
            values = [badness(cut_to(model, kept, data)) for kept in grid]
            chosen[name] = values.index(min(values))
        best = grid[chosen[name]]
        yield name, cut_to(model, best, data)
        yield name + REPAIRED, cut_to(model, best, data, "least_squares")


def by_recipes(
    recipes: dict[str, dict[str, Any]], model: Any, data: TaskData, size: int, seed: int
) -> Iterator[tuple[str, Any]]:
    """Yield the model that each recipe makes, with its name."""
    for name, settings in recipes.items():
        torch.manual_seed(seed)
        recipe = StructuredPruning(keep={"ffn": size}, **settings)
        yield name, recipe.carry_out(StageState(model, data)).model


def _forward(model: Any, inputs: dict[str, torch.Tensor]) -> Any:
    return model(**inputs, **no_cache(model))
