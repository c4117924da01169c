"""Carry out the stages of a run one after the other, then its variants."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hf_pe.recipe import Recipe, StageState
from hf_pe.report import MAIN
from hf_pe.run.identity import StageId
from hf_pe.run.stages import Finished, StageFolder


@dataclass(frozen=True)
class Branch:
    """Hold the final state of the main result or a variant, and a record of each of its stages."""

    state: StageState
    stages: tuple[Finished, ...]


def carry_out(
    folder: StageFolder,
    before: StageState,
    chain: Sequence[tuple[StageId, Recipe]],
    variants: Mapping[str, tuple[StageId, Recipe]],
) -> dict[str, Branch]:
    """Carry out all stages and variants.

    Args:
        folder: Folder that keeps finished stages.
        before: State of the original.
        chain: Stages of the main result, in order.
        variants: Stage of each variant, by name; it follows the last stage of `chain`.

    Returns:
        The main result and the variants, by name.
    """
    state, done = before, []
    for stage, recipe in chain:
        state, finished = folder.make(stage, recipe, state)
        done.append(finished)
    branches = {MAIN: Branch(state, tuple(done))}
    for name, (stage, recipe) in variants.items():
        copy, finished = folder.make(stage, recipe, state)
        branches[name] = Branch(copy, (*done, finished))
    return branches
