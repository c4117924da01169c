"""A training lasts for steps or minutes, and everything that changes during it depends on the fraction that is done."""

import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments, get_cosine_schedule_with_warmup

from hf_pe.distill.duration import LOG_ENTRIES, Duration, learning_rate_factor


class Clock:
    """Returns seconds that a test sets."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def arguments(tmp_path, **settings) -> TrainingArguments:
    return TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", **settings)


def ended_step(duration: Duration, args: TrainingArguments, step: int) -> TrainerControl:
    """Return what the duration asks for after a step."""
    control = TrainerControl()
    duration.on_step_end(args, TrainerState(global_step=step), control)
    return control


def test_minutes_end_the_training(tmp_path):
    clock, args = Clock(), arguments(tmp_path)
    duration = Duration(None, 2.0, clock)
    duration.on_train_begin(args, TrainerState(), TrainerControl())
    clock.seconds += 60
    assert not ended_step(duration, args, 1).should_training_stop
    assert duration.fraction(1) == 0.5
    clock.seconds += 60
    assert ended_step(duration, args, 2).should_training_stop


def test_whichever_is_reached_first_ends_the_training(tmp_path):
    clock, args = Clock(), arguments(tmp_path)
    duration = Duration(10, 1.0, clock)
    duration.on_train_begin(args, TrainerState(), TrainerControl())
    clock.seconds += 15
    ended_step(duration, args, 1)
    assert duration.fraction(1) == 0.25
    assert duration.fraction(5) == 0.5
    assert ended_step(duration, args, 10).should_training_stop


@pytest.mark.parametrize(("strategy", "saves"), [("steps", True), ("no", False)])
def test_the_last_step_is_stored_where_checkpoints_are(tmp_path, strategy, saves):
    args = arguments(tmp_path, save_strategy=strategy)
    assert bool(ended_step(Duration(3, None), args, 3).should_save) == saves


def test_a_resumed_training_continues_with_its_seconds(tmp_path):
    clock, args = Clock(), arguments(tmp_path)
    first = Duration(None, 1.0, clock)
    first.on_train_begin(args, TrainerState(), TrainerControl())
    clock.seconds += 45
    ended_step(first, args, 7)
    state = TrainerState(global_step=7, stateful_callbacks={"Duration": first.state()})
    second = Duration(None, 1.0, clock)
    assert not second.ended(state)
    clock.seconds += 1000  # while nothing was trained
    second.on_train_begin(args, state, TrainerControl())
    clock.seconds += 15
    assert second.fraction(7) == 0.75
    assert ended_step(second, args, 8).should_training_stop
    assert Duration(None, 1.0).ended(TrainerState(stateful_callbacks={"Duration": second.state()}))


def test_the_log_has_as_many_entries_however_the_training_is_limited(tmp_path):
    clock, args = Clock(), arguments(tmp_path)
    for duration in (Duration(600, None, clock), Duration(None, 10, clock)):
        duration.on_train_begin(args, TrainerState(), TrainerControl())
        entries = 0
        for step in range(1, 601):
            clock.seconds += 1
            entries += bool(ended_step(duration, args, step).should_log)
        assert entries == LOG_ENTRIES


def test_the_learning_rate_is_that_of_transformers():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=10, num_training_steps=50)
    for step in range(50):
        assert learning_rate_factor(step / 50, warmup=0.2) == pytest.approx(schedule.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        schedule.step()
    assert learning_rate_factor(0.0, warmup=0.0) == 1.0
