"""Load, check and evaluate the model of a run before its first stage."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from transformers import PreTrainedModel, set_seed

from hf_pe import progress
from hf_pe.calibration.cache import StatisticsCache
from hf_pe.checkpoints.live_model import unchanged
from hf_pe.checkpoints.load import load_with_unread
from hf_pe.checkpoints.mixed_dtypes import dtype_warnings
from hf_pe.checkpoints.stored import rounding_warnings
from hf_pe.checkpoints.weight_checks import require_finite
from hf_pe.measure import Evaluate, chance_warnings, evaluate_task, first_outputs
from hf_pe.padding import classifies_rows_alone, padding_id, padding_named
from hf_pe.recipe import StageState
from hf_pe.run.dry_run import PreparedRun
from hf_pe.run.provenance import public_names
from hf_pe.tasks import EvalResult, TaskData


@dataclass(frozen=True)
class GeneralText:
    """Hold the general text of a run, on which forgetting is measured.

    Attributes:
        data: Prepared rows; their teacher is the original.
        evaluation: Metrics of the original on it; None where the user's own function evaluates.
    """

    data: TaskData
    evaluation: EvalResult | None = None


@dataclass(frozen=True)
class Original:
    """Hold the original model of a run.

    Attributes:
        state: State with the model, and data whose teacher it is.
        live: The model, where it is an object that the user has loaded.
        padding: Id of the padding token that the config lacks and gets during the run; None where it lacks none.
        unread: Parts of the checkpoint that the model does not read.
        evaluation: Metrics of the model; None where the user's own function evaluates.
        general: General text; None where there is none, or none that the original predicts.
        warnings: Warnings about dtypes, and about metrics that are no better than chance.
    """

    state: StageState
    live: PreTrainedModel | None
    padding: int | None
    unread: tuple[str, ...] = ()
    evaluation: EvalResult | None = None
    general: GeneralText | None = None
    warnings: tuple[str, ...] = ()

    @contextmanager
    def in_use(self) -> Iterator[StageState]:
        """Yield the state, its model in evaluation mode and with a padding token; restore a live model afterwards."""
        with unchanged(self.live), padding_named(self.state.model, self.padding):
            self.state.model.eval()
            yield self.state


def load_original(
    run: PreparedRun,
    data: TaskData,
    live: PreTrainedModel | None,
    evaluate: Evaluate | None,
    seed: int,
    general: TaskData | None = None,
) -> Original:
    """Load the original, let every recipe check it, and evaluate it.

    Args:
        run: Prepared run.
        data: Rows of the run.
        live: The model, where the user has loaded it already.
        evaluate: The user's own function that replaces the task's metrics, or None.
        seed: Seed of everything random.
        general: Prepared rows of the general text, or None.

    Raises:
        UsageError: The model cannot be loaded, has values that are not finite, or does not suit a recipe.
    """
    progress.say("loading the model")
    set_seed(seed)
    model, unread = (live, ()) if live is not None else load_with_unread(run.source, run.model_class)
    if live is not None:
        require_finite(live.state_dict().items(), run.source.name)
    padding = padding_id(run.config, data.processor) if classifies_rows_alone(run.config, run.model_class) else None
    original = Original(StageState(model, replace(data, teacher=model)), live, padding, unread)
    with original.in_use() as state:
        first_outputs(model, state.data)
        for recipe in run.recipes:
            recipe.check(replace(state, statistics=StatisticsCache()))  # the run does not hold what a check caches
        progress.say("evaluating the original")
        evaluation = evaluate_task(model, state.data) if evaluate is None else None
        general_text, left_out = _general_text(model, general, evaluate)
    chance = chance_warnings(model, evaluation.scores(), original.state.data) if evaluation else ()
    rounding = rounding_warnings(run.source, run.config, run.model_class, model) if live is None else ()
    warnings = (*rounding, *dtype_warnings(model), *chance, *left_out)
    return replace(original, evaluation=evaluation, general=general_text, warnings=warnings)


def _general_text(
    model: PreTrainedModel, data: TaskData | None, evaluate: Evaluate | None
) -> tuple[GeneralText | None, tuple[str, ...]]:
    """Evaluate the original on the general text; return None and a warning where it is no better than chance on it."""
    if data is None:
        return None, ()
    data = replace(data, teacher=model)
    if evaluate is not None:
        return GeneralText(data), ()
    evaluation = evaluate_task(model, data)
    if not chance_warnings(model, evaluation.scores(), data):
        return GeneralText(data, evaluation), ()
    names = ", ".join(public_names(data.examples.config.train))
    return None, (
        f"Forgetting was not measured: on the general text ({names}) the original is no better than guessing without "
        "the inputs. Name a text that it knows in data.general.",
    )
