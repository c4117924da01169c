"""The model before a run: loaded, checked and evaluated, and left as it was."""

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
from hf_pe.tasks import EvalResult, TaskData


@dataclass(frozen=True)
class Original:
    """The original model of a run.

    Attributes:
        state: with the model, and rows whose teacher it is.
        live: the model, where it is the user's own object.
        padding: id of the padding token that the config lacks while the run lasts; None: it lacks none.
        unread: parts of the checkpoint that the model does not read.
        evaluation: of the model; None where the user's own function evaluates.
        warnings: on dtypes, and on metrics no better than guesses.
    """

    state: StageState
    live: PreTrainedModel | None
    padding: int | None
    unread: tuple[str, ...] = ()
    evaluation: EvalResult | None = None
    warnings: tuple[str, ...] = ()

    @contextmanager
    def in_use(self) -> Iterator[StageState]:
        """The model in evaluation mode, with its padding token; the user's own object is as before afterwards."""
        with unchanged(self.live), padding_named(self.state.model, self.padding):
            self.state.model.eval()
            yield self.state


def load_original(
    run: PreparedRun, data: TaskData, live: PreTrainedModel | None, evaluate: Evaluate | None, seed: int
) -> Original:
    """Load the original, let every recipe check it, and evaluate it.

    Args:
        run: whose original it is.
        data: the rows.
        live: the user's own object, where the model is loaded already.
        evaluate: the user's own function in place of the task's metrics.
        seed: of everything random.

    Raises:
        UsageError: it cannot be loaded, has values that are not finite, or a recipe cannot work with it.
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
            recipe.check(replace(state, statistics=StatisticsCache()))  # what it loads is not held during the run
        progress.say("evaluating the original")
        evaluation = evaluate_task(model, state.data) if evaluate is None else None
    below = chance_warnings(model, evaluation.scores(), original.state.data) if evaluation else ()
    rounded = rounding_warnings(run.source, run.config, run.model_class, model) if live is None else ()
    return replace(original, evaluation=evaluation, warnings=(*rounded, *dtype_warnings(model), *below))
