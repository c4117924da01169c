"""A criterion takes one function and one line: recipe files, schema, plan, cut and card follow from these."""

import json

import pytest
import torch

from hf_pe import StructuredPruning, UsageError
from hf_pe.data import load_examples
from hf_pe.prune.criteria import CRITERIA, REPLACEMENTS, Criterion, UnitStatistics
from hf_pe.recipe import StageState
from hf_pe.recipe_file import json_schema, read_recipe
from hf_pe.tasks import Embedding
from tests.helpers import TEXTS, call

PAPER = "https://arxiv.org/abs/2312.11983"


def fluctuation(statistics: UnitStatistics) -> torch.Tensor:
    """Return the variance of each unit's input times the squared norm of the weights that read it [units]."""
    assert statistics.gram is not None and statistics.mean is not None
    variances = (statistics.gram.diagonal() - statistics.mean.square()).reshape(statistics.consumer.shape[1:])
    return (variances * statistics.consumer.square().sum(0)).sum(1)


@pytest.fixture
def registered(monkeypatch):
    line = Criterion(fluctuation, ("activations",), "fluctuation of inputs", PAPER)
    monkeypatch.setitem(CRITERIA, "fluctuation", line)  # the one line


@pytest.fixture
def file(write_recipe, bert_folder):
    return write_recipe(bert_folder, {"recipe": "prune", "keep": {"ffn": 0.5}, "criterion": "fluctuation"})


def criteria_in_schema() -> list[str]:
    return json.loads(json_schema())["$defs"]["StructuredPruning"]["properties"]["criterion"]["enum"]


def test_recipe_files_and_their_schema_accept_it_once_it_is_registered(file, request):
    with pytest.raises(UsageError, match=r"criterion: expected one of magnitude_l2, .*; got 'fluctuation'"):
        read_recipe(file)
    assert "fluctuation" not in criteria_in_schema()
    request.getfixturevalue("registered")
    assert read_recipe(file).recipes == (StructuredPruning(keep={"ffn": 0.5}, criterion="fluctuation"),)
    assert criteria_in_schema() == [*CRITERIA]
    with pytest.raises(UsageError, match=r"got 'fluctuations'. Did you mean 'fluctuation'\?"):
        read_recipe(file, ["recipes.0.criterion=fluctuations"])


@pytest.mark.usefixtures("registered")
def test_the_command_line_prunes_by_it_and_the_card_cites_it(file, tmp_path):
    planned = call("plan", file)
    assert planned.exit_code == 0, planned.output
    done = call("run", file, "--output", tmp_path / "out")
    assert done.exit_code == 0, done.output
    card = (tmp_path / "out" / "README.md").read_text()
    assert "structured pruning (fluctuation of inputs, least squares)" in card and PAPER in card


@pytest.mark.usefixtures("registered")
def test_it_decides_which_units_stay_by_statistics_of_their_inputs(bert_folder, tokenizer):
    from transformers import BertModel

    model = BertModel.from_pretrained(bert_folder).eval()
    data = Embedding().prepare(load_examples(TEXTS), tokenizer, model.config)
    constant = 3  # a unit that gives the same for every token: its bias alone
    with torch.no_grad():
        for layer in model.encoder.layer:
            layer.intermediate.dense.weight[constant] = 0
            layer.intermediate.dense.bias[constant] = 9.0
    for criterion, stays in (("fluctuation", False), ("activation_weight", True)):
        plan = StructuredPruning(keep={"ffn": 0.5}, criterion=criterion).plan(StageState(model, data))
        assert all((constant in units) is stays for units in plan.kept["ffn"].values()), criterion


@pytest.mark.parametrize("name", REPLACEMENTS)
def test_a_criterion_of_an_earlier_version_is_refused_with_its_replacement(file, name):
    with pytest.raises(
        UsageError, match=f"criterion: '{name}' is not supported any more. .*(magnitude_l2|weight|CRITERIA)"
    ):
        read_recipe(file, [f"recipes.0.criterion={name}"])
