"""Loads the teachers of a distillation from its settings and the state of a run."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from transformers import PreTrainedModel

from hf_pe.calibration.cache import StatisticsKey
from hf_pe.distill.schedule import Schedule
from hf_pe.distill.settings import DistillationSettings
from hf_pe.distill.teachers.cache_files import open_cache
from hf_pe.distill.teachers.live import LiveTeacher
from hf_pe.distill.teachers.load import Teacher
from hf_pe.distill.teachers.source import TeacherSource
from hf_pe.modes import frozen
from hf_pe.recipe import StageState


@contextmanager
def loaded_teachers(settings: DistillationSettings, state: StageState) -> Iterator[list[LiveTeacher]]:
    """Yield the teachers as frozen models, and keep them in the state for `training_teachers`."""
    models = _models(settings, state)
    for teacher, model in zip(settings.teachers, models, strict=False):
        state.statistics.put(state.model, _key(teacher), model)
    with _all_frozen(models):
        yield [LiveTeacher(model, teacher.weight) for teacher, model in zip(_named(settings), models, strict=True)]


@contextmanager
def training_teachers(settings: DistillationSettings, state: StageState) -> Iterator[list[TeacherSource]]:
    """Yield the teachers to learn from: frozen models, or their caches, which are completed first.

    Raises:
        UsageError: see `Teacher.load` and `open_cache`.
    """
    models = _models(settings, state)
    with _all_frozen(models):
        yield [
            _source(settings, state, teacher, model, number)
            for number, (teacher, model) in enumerate(zip(_named(settings), models, strict=True), 1)
        ]


@contextmanager
def _all_frozen(models: Sequence[PreTrainedModel]) -> Iterator[None]:
    """Freeze all teachers inside the block; they stay in evaluation mode afterwards."""
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(frozen(model.eval()))
        yield


def _source(
    settings: DistillationSettings, state: StageState, teacher: Teacher, model: PreTrainedModel, number: int
) -> TeacherSource:
    if settings.cache is None:
        return LiveTeacher(model, teacher.weight)
    assert not isinstance(settings.temperature, Schedule), "the settings refuse it with a cache"
    name = "".join(c if c.isalnum() else "-" for c in teacher.name)
    return open_cache(settings.cache, model, state.data, settings.temperature, teacher.weight, f"{number}-{name}")


def _named(settings: DistillationSettings) -> tuple[Teacher, ...]:
    return settings.teachers or (Teacher(),)


def _models(settings: DistillationSettings, state: StageState) -> list[PreTrainedModel]:
    """Return the teachers' models; those that the state does not hold are loaded."""
    held = [state.statistics.pop(state.model, _key(teacher)) for teacher in _named(settings)]
    return [model or teacher.load(state.data) for teacher, model in zip(_named(settings), held, strict=True)]


def _key(teacher: Teacher) -> StatisticsKey[PreTrainedModel]:
    return StatisticsKey("loaded teacher", teacher)
