"""What a card and a report say of quality during training."""

import pytest

from hf_pe.training_curve import Evaluation, TrainingCurve


def curve(kept_step, values=(30.0, 20.0, 25.0)):
    evaluations = tuple(Evaluation(step=10 * n, seconds=n, value=value) for n, value in enumerate(values))
    return TrainingCurve(
        metric="perplexity",
        rows=40,
        evaluations=evaluations,
        kept_step=kept_step,
        last_step=20,
        evaluation_seconds=0.1,
    )


def test_the_sentence_states_which_weights_are_the_result_and_what_was_measured():
    assert curve(10).sentence == (
        "the weights after step 10 of 20 are kept: perplexity 20 on 40 held-out training rows (before training 30, after "
        "the last step 25)"
    )
    assert "nothing was selected" in curve(None).sentence


@pytest.mark.parametrize(("kept_step", "count"), [(0, 1), (10, 0), (20, 0), (None, 0)])
def test_only_a_student_that_is_returned_as_it_was_before_training_is_warned_of(kept_step, count):
    assert len(curve(kept_step).warnings) == count


def test_a_value_that_is_no_number_is_stored_and_named():
    nan = curve(0, (30.0, None))
    assert TrainingCurve.model_validate_json(nan.model_dump_json()) == nan
    assert "after the last step no number" in nan.warnings[0]
