"""After which steps a student is evaluated."""

import pytest

from hf_pe.distill.evaluation_times import PARTS, EvaluationTimes


class Hands:
    """A clock that moves when it is told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def evaluated_steps(share, step_seconds, evaluation_seconds, steps, *, stop=None, state=None):
    """Train by the clock alone; return the steps with an evaluation after them, and the times."""
    clock, first = Hands(), 1
    times, evaluated = EvaluationTimes(share, clock), []

    def evaluate(step):
        with times.evaluation():
            clock.now += evaluation_seconds
        evaluated.append(step)

    if state is None:
        times.begin()
        evaluate(0)
    else:
        first = state.pop("step") + 1
        times.restore(state)
        times.begin()
    for step in range(first, steps + 1):
        clock.now += step_seconds
        if step < steps and times.is_due(step / steps):
            evaluate(step)
        if step == stop:
            return evaluated, times.state() | {"step": step}
    if times.allows_last():
        evaluate(steps)
    return evaluated, times


@pytest.mark.parametrize("share", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("cost", [0.0001, 0.001, 0.004, 0.02, 0.1])
@pytest.mark.parametrize("steps", [3, 16, 50, 301])
def test_evaluations_keep_to_their_share_of_the_time(share, cost, steps):
    step_seconds = 0.5
    evaluated, times = evaluated_steps(share, step_seconds, cost * steps * step_seconds, steps)
    assert times.training_seconds == pytest.approx(steps * step_seconds)
    assert times.evaluation_seconds == pytest.approx(len(evaluated) * cost * steps * step_seconds)
    assert len(evaluated) == 1 or times.evaluation_seconds <= share * times.training_seconds * (1 + 1e-9)
    assert (steps in evaluated) == (2 * cost <= share)


def test_the_share_is_used_and_the_evaluations_are_spread_evenly():
    steps, _ = evaluated_steps(0.05, 1.0, 0.01, 160)
    assert steps == list(range(0, 161, 160 // PARTS))
    steps, _ = evaluated_steps(0.05, 1.0, 1.0, 160)  # the share pays for 8 evaluations
    assert steps == [0, 40, 80, 120, 160]
    steps, _ = evaluated_steps(0.05, 1.0, 3.9, 160)  # and now for 2
    assert steps == [0, 160]


@pytest.mark.parametrize("stop", [7, 40, 95, 150])
@pytest.mark.parametrize("cost", [0.2, 0.6, 1.0])
def test_a_resumed_training_is_evaluated_after_the_same_steps(stop, cost):
    whole, _ = evaluated_steps(0.05, 1.0, cost, 160)
    _, state = evaluated_steps(0.05, 1.0, cost, 160, stop=stop)
    rest, _ = evaluated_steps(0.05, 1.0, cost, 160, state=state)
    assert rest == [step for step in whole if step > stop]
