"""What users see is as committed: public names, help texts, plans. Remake: pytest tests/test_snapshots.py --update-snapshots

The recipe schema and the cards of model_cards/ have such tests of their own, in test_recipe_file.py and hub/test_model_cards.py.
"""

import inspect
import json
from dataclasses import replace
from pathlib import Path

import pytest
import typer.main
from transformers import BertModel

import hf_pe
from hf_pe import BackboneSwap, BitsAndBytesQuantization, Distillation, StructuredPruning
from hf_pe.cli import app
from hf_pe.data import load_examples
from hf_pe.dummies.tiny import randomize_weights_
from hf_pe.recipe import StageState
from hf_pe.tasks import Embedding
from tests.helpers import TEXTS, assert_same_text, bert_config, call

FOLDER = Path(__file__).parent / "snapshots"
REMAKE = "pytest tests/test_snapshots.py --update-snapshots"


@pytest.fixture
def unchanged(request):
    """Compare a text with its committed file, or write that file."""

    def check(name, text):
        if request.config.getoption("--update-snapshots"):
            FOLDER.mkdir(exist_ok=True)
            (FOLDER / name).write_text(text, "utf-8")
        assert_same_text(FOLDER / name, text, REMAKE)

    return check


def parameters(function):
    """The parameters of a callable, one a line, with kinds and defaults; types read differently from Python to Python."""
    signature = inspect.signature(function)
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    lines = [str(inspect.Signature([parameter]))[1:-1] for parameter in bare]
    keyword = [parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in bare]
    return [line.replace("*, ", "keyword ") if named else line for line, named in zip(lines, keyword, strict=True)]


def members(kind):
    """The public methods with their parameters, and the properties, that a class defines itself."""
    for name, member in sorted(vars(kind).items()):
        if name.startswith("_") or name in getattr(kind, "model_fields", ()):
            continue
        if inspect.isroutine(member):
            yield f"method {name}", parameters(getattr(kind, name))
        elif hasattr(member, "__get__"):
            yield f"property {name}", []


def description(name, public):
    """A public name as lines."""
    if inspect.isclass(public) and issubclass(public, BaseException):
        return [f"{name}: {public.__base__.__name__}"]
    lines = [name, *(f"    {line}" for line in parameters(public))]
    for member, arguments in members(public) if inspect.isclass(public) else ():
        lines += [f"    {member}", *(f"        {line}" for line in arguments)]
    return lines


def test_public_names_and_their_signatures(unchanged):
    lines = [line for name in sorted(hf_pe.__all__) for line in description(name, getattr(hf_pe, name))]
    unchanged("public_names.txt", "\n".join(lines) + "\n")


def test_help_of_every_command(unchanged):
    commands = [[], *([name] for name in typer.main.get_command(app).commands)]
    unchanged("help.txt", "\n".join(call(*command, "--help", columns=80).output for command in commands))


def rounded(value):
    """The same JSON value, its floats to two significant digits: the rest is this machine's arithmetic."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return float(f"{value:.2g}") if isinstance(value, float) else value


PLANS = {
    "prune": StructuredPruning(keep={"ffn": 0.25, "layers": 1}),
    "swap": BackboneSwap(config={"num_hidden_layers": 1}),
    "distil": Distillation(losses={"cosine": 1.0, "hidden": 0.5}, steps=7),
    "quantize": BitsAndBytesQuantization(mean_bits=6.0, sensitivity="estimated"),
}


@pytest.mark.parametrize("name", PLANS)
def test_plan_of_a_recipe(name, tokenizer, unchanged):
    model = randomize_weights_(BertModel(bert_config(num_hidden_layers=2, intermediate_size=64))).eval()
    data = Embedding().prepare(load_examples(TEXTS), tokenizer, model.config)
    plan = PLANS[name].plan(StageState(model, replace(data, teacher=model)))
    unchanged(f"plan_{name}.json", json.dumps(rounded(plan.model_dump(mode="json")), indent=2) + "\n")


def test_no_snapshot_is_left_over():
    names = {"public_names.txt", "help.txt", *(f"plan_{name}.json" for name in PLANS)}
    assert {file.name for file in FOLDER.iterdir()} == names


def test_a_changed_text_is_shown_with_the_way_to_remake_it(tmp_path):
    (tmp_path / "some.txt").write_text("same\nold\n")
    assert_same_text(tmp_path / "some.txt", "same\nold\n", REMAKE)
    with pytest.raises(pytest.fail.Exception, match=r"some.txt has changed[\s\S]*--update-snapshots[\s\S]*-old\n\+new"):
        assert_same_text(tmp_path / "some.txt", "same\nnew\n", REMAKE)
    with pytest.raises(pytest.fail.Exception, match=r"none.txt has changed[\s\S]*\+new"):
        assert_same_text(tmp_path / "none.txt", "new\n", REMAKE)


def test_a_signature_has_names_kinds_and_defaults_but_no_types():
    def function(a: int, /, b: str = "x", *rest: int, c: float, d: dict[str, int] | None = None, **more: int) -> int:
        return 0

    assert parameters(function) == ["a, /", "b='x'", "*rest", "keyword c", "keyword d=None", "**more"]


def test_plans_are_rounded_inside_lists_and_tables():
    assert rounded({"a": [1.23456, 2], "b": {"c": 123456.0}}) == {"a": [1.2, 2], "b": {"c": 120000.0}}
