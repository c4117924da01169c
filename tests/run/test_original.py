"""The original of a run is loaded and checked once, and left as it was."""

from torch import nn

from hf_pe.calibration.cache import StatisticsKey
from hf_pe.checkpoints.source import resolve
from hf_pe.data import load_examples
from hf_pe.quantize import Cast
from hf_pe.run.dry_run import prepare_run
from hf_pe.run.original import load_original
from hf_pe.tasks import prepare
from tests.helpers import TEXTS

TEACHER = StatisticsKey[nn.Module]("teacher")


class Checking(Cast):
    """Hold something large after its check, as a distillation does with teachers that it names."""

    def check(self, state):
        state.statistics.put(state.model, TEACHER, nn.Linear(2, 2))


def test_what_a_recipe_loads_for_its_check_is_not_held_during_the_run(bert_folder, tokenizer):
    run = prepare_run(resolve(str(bert_folder)), [Checking()], {}, task="embedding")
    data = prepare(run.task, load_examples(TEXTS), tokenizer, run.config)
    original = load_original(run, data, None, lambda model: {"layers": 4.0}, seed=0)
    assert len(original.state.statistics) == 0
    assert original.state.teacher is original.state.model
