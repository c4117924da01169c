"""A loss takes one function and one line: recipe files, schema, checks, plan, card, cache and chunks follow from it."""

import json

import pytest
import torch

from hf_pe import UsageError
from hf_pe.distill.losses.logits import softened
from hf_pe.distill.losses.registry import LOSSES, LossSettings, divergence_loss
from hf_pe.papers import PAPERS, Paper
from hf_pe.recipe_file import json_schema, read_recipe
from tests.helpers import call

PAPER = Paper("someone1909distance", "Some One", "A Distance of Distributions", 1909, "0909.00001")
LINK = f"https://arxiv.org/abs/{PAPER.arxiv}"


def hellinger(student, teacher, settings):
    """1 - sum over classes of sqrt(p q), of logits [positions, classes]: [positions]."""
    log_probs = (softened(logits, settings.temperature) for logits in (student, teacher))
    return (1 - (sum(log_probs) / 2).exp().sum(-1)).clamp_min(0)


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(LOSSES, "hellinger", divergence_loss(hellinger, "Hellinger distance of the logits", LINK))
    monkeypatch.setitem(PAPERS, LINK, PAPER)


@pytest.fixture
def file(registered, write_recipe, llama_folder):
    prune = {"recipe": "prune", "keep": {"ffn": 0.5}}
    distil = {"recipe": "distil", "losses": {"hellinger": 1.0}, "steps": 3, "batch_size": 4, "learning_rate": 1e-3}
    return write_recipe(llama_folder, prune, distil, task="causal_lm", max_length=16)


def test_it_is_read_from_a_recipe_file_and_stands_in_the_schema(file):
    assert read_recipe(file).recipes[1].losses == {"hellinger": 1.0}
    (losses,) = [
        kind["properties"]["losses"]
        for kind in json.loads(json_schema())["$defs"].values()
        if "losses" in kind["properties"]
    ]
    assert losses["propertyNames"]["enum"] == list(LOSSES) and "hellinger" in losses["description"]
    with pytest.raises(UsageError, match=r"no loss is called 'helinger'; expected .*hellinger.* mean 'hellinger'"):
        read_recipe(file, ["recipes.1.losses={helinger: 1.0}"])


@pytest.mark.parametrize("large", [1, 10**9], ids=["in chunks", "whole logits"])
def test_the_command_line_trains_with_it_and_the_card_cites_its_paper(file, tmp_path, large, monkeypatch):
    monkeypatch.setattr("hf_pe.distill.build.LARGE", large)
    done = call("run", file, "--output", tmp_path / "out")
    assert done.exit_code == 0, done.output
    stage = json.loads((tmp_path / "out" / "report.json").read_text())["stages"][1]
    assert len(stage["losses"]) == 3 and all(0 < loss < 1 for _, loss in stage["losses"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Hellinger distance of the logits" in card and PAPER.bibtex in card


def test_it_learns_from_a_cache_of_the_likeliest_classes(file, tmp_path):
    cache = f"recipes.1.cache={{folder: {tmp_path / 'kept'}, top_k: 8}}"
    done = call("run", file, "--output", tmp_path / "out", "--set", cache)
    assert done.exit_code == 0, done.output
    assert list((tmp_path / "kept").iterdir())


def test_it_is_named_where_a_task_gives_no_logits(file):
    done = call(
        "run", file, "--output", file.parent / "out", "--set", "task=embedding", "--set", "recipes.0.keep.ffn=0.9"
    )
    assert done.exit_code != 0
    assert "distil.losses.hellinger" in " ".join(done.output.split())


def test_it_is_zero_for_equal_logits():
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    loss = divergence_loss(hellinger, "", "")
    assert loss.compute({"logits": logits}, {"logits": logits}, LossSettings(2.0)) == pytest.approx(0, abs=1e-6)
    assert loss.compute({"logits": logits}, {"logits": -logits}, LossSettings(2.0)) > 1e-3
