"""Other methods for decoders of the Llama family, written anew.

None of them needs a stock config for its result: layers may differ and biases may appear. So the model that a peer
would save is evaluated, not one that would reload.

Removed units are zeroed where they are read, which is the same function.
"""

import copy
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from peers import weighted_fluctuation
from torch import nn

from hf_pe.anatomy import discover
from hf_pe.calibration import BATCH
from hf_pe.calibration.cache import StatisticsCache, StatisticsKey
from hf_pe.prune import StructuredPruning
from hf_pe.prune.statistics.moments import consumer_moments
from hf_pe.recipe import StageState
from hf_pe.regression import Moments, pooled
from hf_pe.tasks import TaskData

FIRST, LAST = 4, 2
"""LLM-Pruner leaves the first four and the last two blocks as they are."""
STATISTICS = StatisticsCache()
"""Inputs of a model's maps, which are the same for all shares and settings."""


class Block(NamedTuple):
    """Hold the maps of one decoder layer that read FFN units and heads, and what removing one of these saves."""

    layer: Any
    ffn: int
    groups: int
    unit: int
    group: int

    @classmethod
    def all(cls, model: Any) -> list["Block"]:
        """Return one block for each layer."""
        config = model.config
        head = config.hidden_size // config.num_attention_heads
        queries = config.num_attention_heads // config.num_key_value_heads
        return [
            cls(
                layer,
                config.intermediate_size,
                config.num_key_value_heads,
                3 * config.hidden_size,
                (2 * queries + 2) * head * config.hidden_size,
            )
            for layer in model.model.layers
        ]

    def scores(self, of: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return sums over all weights of each FFN unit and of each key-value group, `of(weights as [units, rest])`."""
        mlp, attention = self.layer.mlp, self.layer.self_attn
        ffn = [mlp.gate_proj, mlp.up_proj], [mlp.down_proj]
        heads = [attention.q_proj, attention.k_proj, attention.v_proj], [attention.o_proj]
        totals = []
        for (writing, reading), count in ((ffn, self.ffn), (heads, self.groups)):
            parts = [of(m, lambda w: w) for m in writing] + [of(m, lambda w: w.T) for m in reading]
            totals.append(torch.stack([part.reshape(count, -1).sum(1) for part in parts]).sum(0))
        return totals[0], totals[1]

    def without(self, ffn: torch.Tensor, groups: torch.Tensor) -> None:
        """Zero the units with these indices where they are read, in place."""
        self.layer.mlp.down_proj.weight.data[:, ffn] = 0
        reading = self.layer.self_attn.o_proj.weight.data
        reading.view(len(reading), self.groups, -1)[:, groups] = 0


def block_taylor(graded: Any, saved: float) -> Iterator[Any]:
    """Prune by Taylor importance of coupled structures, as LLM-Pruner (Ma et al. 2023, arXiv:2305.11627, eq. 3 to 5).

    Element-wise or by vector, with the FFN alone or with a key-value group of each of the blocks that are pruned.

    Args:
        graded: the model with gradients.
        saved: parameters that have to go.
    """

    def element(module: nn.Linear, turn: Any) -> torch.Tensor:
        return turn(module.weight.data * module.weight.grad).abs().sum(1)

    def vector(module: nn.Linear, turn: Any) -> torch.Tensor:
        return turn(module.weight.data * module.weight.grad).sum(1).abs()

    for of in (element, vector):
        for groups in (0, 1):
            model = copy.deepcopy(graded)  # without its gradients
            blocks = Block.all(model)[FIRST:-LAST]
            units = math.floor((saved / len(blocks) - groups * blocks[0].group) / blocks[0].unit)
            if not 0 <= units < blocks[0].ffn:
                continue
            for block, graded_block in zip(blocks, Block.all(graded)[FIRST:-LAST], strict=True):
                ffn, heads = graded_block.scores(of)
                block.without(ffn.argsort()[:units], heads.argsort()[:groups])
            yield model


def flap(model: Any, data: TaskData, saved: float) -> Iterator[Any]:
    """Prune by FLAP (An et al. 2024, arXiv:2312.11983, eq. 4 to 6).

    Weighted fluctuation, standardised by layer and then global, with the baseline bias; over FFN and heads, over the
    FFN alone, and the FFN with the same width everywhere.
    """

    def inputs() -> dict[str, Moments]:
        axes = [discover(model.config, type(model)).named(name)[0] for name in ("ffn", "kv_groups")]
        return {key: pooled(f) for axis in axes for key, f in consumer_moments(model, axis, data).items()}

    key = StatisticsKey[dict[str, Moments]]("inputs of FFN and heads", data.examples.fingerprint)
    moments = STATISTICS.get(model, key, inputs)

    def standard(scores: torch.Tensor) -> torch.Tensor:
        return (scores - scores.mean()) / scores.std()

    for heads, even in ((True, False), (False, False), (False, True)):
        small = copy.deepcopy(model)
        blocks = Block.all(small)
        keys = [(f"model.layers.{i}.mlp.down_proj", f"model.layers.{i}.self_attn.o_proj") for i in range(len(blocks))]
        units = []
        for number, (block, (down, out)) in enumerate(zip(blocks, keys, strict=True)):
            ffn = weighted_fluctuation(moments[f"{down}.weight"], block.layer.mlp.down_proj.weight.data)
            kv = (
                weighted_fluctuation(moments[f"{out}.weight"], block.layer.self_attn.o_proj.weight.data)
                .reshape(block.groups, -1)
                .mean(1)
            )
            rank = ffn.argsort().argsort().float() if even else standard(ffn)
            units += [(float(s), number, 0, i, block.unit) for i, s in enumerate(rank)]
            if heads:  # a group of heads counts for as many units as it has parameters
                units += [(float(s), number, 1, i, block.group) for i, s in enumerate(standard(kv))]
        gone: list[tuple[list[int], list[int]]] = [([], []) for _ in blocks]
        remaining = saved
        for _, number, kind, index, cost in sorted(units):
            if cost <= remaining and not (kind == 1 and len(gone[number][1]) == blocks[number].groups - 1):
                gone[number][kind].append(index)
                remaining -= cost
        for block, (down, out), (ffn_gone, heads_gone) in zip(blocks, keys, gone, strict=True):
            width = block.layer.self_attn.o_proj.in_features // block.groups
            places = [g * width + i for g in heads_gone for i in range(width)]
            for key, module, index in (
                (down, block.layer.mlp.down_proj, ffn_gone),
                (out, block.layer.self_attn.o_proj, places),
            ):
                mean = moments[f"{key}.weight"].x / moments[f"{key}.weight"].count
                module.bias = nn.Parameter(module.weight.data[:, index] @ mean[index])
            block.without(torch.tensor(ffn_gone, dtype=torch.long), torch.tensor(heads_gone, dtype=torch.long))
        yield small


def short_gpt(model: Any, data: TaskData, share: float) -> Iterator[Any]:
    """Remove the layers of least block influence (Men et al. 2024, arXiv:2403.03853)."""
    layers = model.config.num_hidden_layers
    recipe = StructuredPruning(keep={"layers": layers - round(share * layers)}, refit="none")
    yield recipe.carry_out(StageState(model, data)).model


@torch.no_grad()
def slice_gpt(model: Any, data: TaskData, share: float) -> Iterator[Any]:
    """Slice off the smallest principal components of the residual stream at every block's attention and FFN.

    Each is computed from the outputs of the sliced blocks before it (Ashkboos et al. 2024, arXiv:2401.15024, 3.3).

    A projection stands for the slicing, with the norm over the kept width as if it were whole. The rotations between
    blocks are counted: width w of h leaves w/h of a block's weights and 2 w^2 of rotations.
    """
    small = copy.deepcopy(model)
    hidden = model.config.hidden_size
    block = sum(p.numel() for p in model.model.layers[0].parameters())
    # w/h * block + 2 w^2 = (1 - share) * block
    width = math.floor((-block / hidden + math.sqrt((block / hidden) ** 2 + 8 * (1 - share) * block)) / 4)
    rows = [small.model.embed_tokens(b["input_ids"]) for b in data.batches(data.calibration, BATCH)]
    places = torch.arange(rows[0].shape[1])[None]
    rotary = small.model.rotary_emb(rows[0], places)

    def projection(states: list[torch.Tensor]) -> torch.Tensor:
        total = torch.zeros(hidden, hidden, dtype=torch.float64)
        for state in states:
            flat = state.flatten(0, 1)
            flat = flat / flat.square().mean(-1, keepdim=True).sqrt()
            total += (flat.T @ flat).double()
        vectors = torch.linalg.eigh(total).eigenvectors[:, -width:].float()
        return vectors @ vectors.T

    for layer in small.model.layers:
        attended = [s + layer.self_attn(layer.input_layernorm(s), rotary, attention_mask=None)[0] for s in rows]
        first = projection(attended)
        attended = [s @ first for s in attended]
        rows = [s + layer.mlp(layer.post_attention_layernorm(s)) for s in attended]
        second = projection(rows)
        rows = [s @ second for s in rows]
        layer.forward = _sliced(layer, first, second)
    yield small


def _sliced(layer: Any, first: torch.Tensor, second: torch.Tensor) -> Any:
    def forward(hidden_states: torch.Tensor, position_embeddings: Any = None, attention_mask: Any = None, **_: Any):
        attended = layer.self_attn(layer.input_layernorm(hidden_states), position_embeddings, attention_mask)[0]
        hidden_states = (hidden_states + attended) @ first
        return (hidden_states + layer.mlp(layer.post_attention_layernorm(hidden_states))) @ second

    return forward
