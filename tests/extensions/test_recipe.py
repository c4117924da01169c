"""A recipe takes one class and one line: recipe files, schema, order, stages, report and card follow from these."""

import copy
import json
from typing import Literal

import pytest
from pydantic import Field

from hf_pe import BitsAndBytesQuantization, UsageError, compress
from hf_pe.measure import spec_sizes
from hf_pe.model_spec import ModelSpec
from hf_pe.plans import Plan
from hf_pe.recipe import Recipe, StageState
from hf_pe.recipe_file import json_schema, read_recipe
from hf_pe.recipes import RECIPES
from hf_pe.run.order import check_order
from tests.helpers import TEXTS, call


class Shortened(Recipe):
    """Halve the length of what the tokenizer gives, and return a training curve: both travel in the state."""

    tag = "shortened"
    changes = "weights"
    needs_plain_weights = "packed weights cannot be shortened"

    recipe: Literal["shorten"] = "shorten"
    length: int = Field(32, ge=1, description="tokens that are left of a text")

    def dry_run(self, spec: ModelSpec) -> tuple[Plan, ModelSpec]:
        return self.planned(title=f"texts of {self.length} tokens", exact=True, **spec_sizes(spec)), spec

    def plan(self, state: StageState) -> Plan:
        return self.dry_run(state.spec)[0]

    def apply(self, state: StageState, plan: Plan) -> StageState:
        processor = copy.deepcopy(state.processor)
        processor.model_max_length = self.length
        return state.with_model(copy.deepcopy(state.model), [(1, 0.5), (2, 0.25)]).with_processor(processor)


@pytest.fixture
def registered(register):
    register(RECIPES, Shortened.kind(), Shortened)  # the one line


@pytest.fixture
def file(registered, write_recipe, bert_folder):
    return write_recipe(bert_folder, {"recipe": "shorten", "length": 16})


def test_it_is_read_from_a_recipe_file_and_stands_in_the_schema(file):
    assert read_recipe(file).recipes == (Shortened(length=16),)
    assert "tokens that are left of a text" in json_schema()
    with pytest.raises(UsageError, match=r"expected one of .*shorten; got 'shoten'. Did you mean 'shorten'"):
        read_recipe(file, ["recipes.0.recipe=shoten"])


def test_its_place_in_the_order_follows_from_what_it_changes(registered):
    check_order([Shortened(), BitsAndBytesQuantization()])
    with pytest.raises(UsageError, match=r"packed weights cannot be shortened\. Put shorten first"):
        check_order([BitsAndBytesQuantization(), Shortened()])


def test_the_command_line_carries_it_out_and_the_card_names_it(file, tmp_path):
    planned = call("plan", file)
    assert planned.exit_code == 0 and "shorten" in planned.output
    done = call("run", file, "--output", tmp_path / "out")
    assert done.exit_code == 0, done.output
    card = (tmp_path / "out" / "README.md").read_text()
    assert "- shortened" in card and "texts of 16 tokens" in card
    (stage,) = json.loads((tmp_path / "out" / "report.json").read_text())["stages"]
    assert stage["losses"] == [[1, 0.5], [2, 0.25]]
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["model_max_length"] == 16


def test_a_resumed_run_finds_its_processor_again(registered, bert_folder, tmp_path):
    steps = [Shortened(length=16)]
    call = {"data": TEXTS, "task": "embedding", "work": tmp_path / "work"}
    first = compress(str(bert_folder), steps, **call)
    again = compress(str(bert_folder), steps, resume=True, **call)
    assert first.processor.model_max_length == again.processor.model_max_length == 16
    assert again.report.stages[0].losses == first.report.stages[0].losses
