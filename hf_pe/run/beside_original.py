"""Compare a result with the original on the evaluation rows and on the general text."""

from typing import Literal

from hf_pe.measure import evaluate_task
from hf_pe.measure.forgetting import forgetting, losses
from hf_pe.measure.nearness import estimates, few_rows, nearness, predictions
from hf_pe.nearness_records import Nearness
from hf_pe.recipe import StageState
from hf_pe.run.original import Original
from hf_pe.tasks import EvalResult, TaskData


def beside_original(original: Original, result: StageState, evaluation: EvalResult | None) -> dict[str, object]:
    """Return the fields of a measurement that need both the original and a result.

    There are none where a recipe has changed the processor: the models then read other tokens.

    Args:
        original: The original, evaluated on the general text.
        result: State of the result.
        evaluation: Evaluation of the result on the evaluation rows; None where the user's own function evaluates.
    """
    data, general = original.state.data, original.general
    if result.processor is not original.state.processor:
        return {}
    compared = _compared(original, result, data)
    records = [_record("evaluation", compared)]
    if general is None:
        return {"nearness": _present(records)}
    general_compared = _compared(original, result, general.data)
    records.append(_record("general", general_compared))
    after = None if general.evaluation is None else evaluate_task(result.model, general.data)
    return {
        "nearness": _present(records),
        "general_quality": after.scores() if after else {},
        "forgetting": forgetting(
            losses(original.evaluation, evaluation, compared), losses(general.evaluation, after, general_compared)
        ),
    }


def _compared(original: Original, result: StageState, data: TaskData) -> EvalResult | None:
    rows = few_rows(data.eval, data.examples.config.seed)
    return nearness(original.state.model, result.model, data, rows)


def _record(text: Literal["evaluation", "general"], compared: EvalResult | None) -> Nearness | None:
    if compared is None:
        return None
    return Nearness(text=text, rows=compared.count, predictions=predictions(compared), values=estimates(compared))


def _present(records: list[Nearness | None]) -> tuple[Nearness, ...]:
    return tuple(record for record in records if record is not None)
