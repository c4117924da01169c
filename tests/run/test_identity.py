"""What a stage is made from is told apart; what does not matter for it is not."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertModel

from hf_pe import BackboneSwap, BitsAndBytesQuantization, Distillation, StructuredPruning
from hf_pe.checkpoints.source import Source, resolve
from hf_pe.data import load_examples
from hf_pe.run import identity
from hf_pe.run.identity import live_sha256, model_files, origin_of, processor_sha256, stage_ids
from hf_pe.tasks import Embedding
from tests.helpers import TEXTS

PRUNE, QUANTIZE = StructuredPruning(keep={"ffn": 0.5}), BitsAndBytesQuantization()


@pytest.fixture
def folder(bert_folder, tmp_path):
    """A copy of a model, free to be changed."""
    return shutil.copytree(bert_folder, tmp_path / "model")


def add(file, value):
    weights = load_file(file)
    name = sorted(weights)[0]
    save_file(weights | {name: weights[name] + value}, file, {"format": "pt"})


def test_a_model_is_its_weights_config_and_vocabulary(folder, tmp_path):
    before = model_files(resolve(str(folder)))
    (folder / "README.md").write_text("# Another card")
    (folder / "optimizer.pt").write_bytes(b"of its training")
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    assert model_files(resolve(str(folder))) == model_files(resolve(str(moved))) == before
    add(folder / "model.safetensors", 1e-3)
    assert model_files(resolve(str(folder))) != before
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 0.1}))
    assert model_files(resolve(str(moved))) != before


def test_an_adapter_is_what_it_says_and_its_base(folder, tmp_path):
    model = get_peft_model(BertModel.from_pretrained(folder), LoraConfig(r=2, target_modules=["query"]))
    model.save_pretrained(tmp_path / "adapter")
    hashes = [model_files(resolve(str(tmp_path / "adapter")))]
    for changed in (tmp_path / "adapter" / "adapter_model.safetensors", folder / "model.safetensors"):
        add(changed, 1.0)
        hashes.append(model_files(resolve(str(tmp_path / "adapter"))))
    assert len({json.dumps(each) for each in hashes}) == 3


def test_an_adapter_over_a_gguf_file_is_both_files(folder, tmp_path):
    get_peft_model(BertModel.from_pretrained(folder), LoraConfig(r=2, target_modules=["query"])).save_pretrained(
        tmp_path / "adapter"
    )
    base = tmp_path / "base"
    base.mkdir()
    (base / "model.gguf").write_bytes(b"weights")
    source = Source(name="a", path=str(base), gguf_file="model.gguf", adapter=str(tmp_path / "adapter"))
    files, adapter = model_files(source)
    assert [*files] == ["model.gguf"] and "adapter_model.safetensors" in adapter


def test_a_hub_id_is_its_commit(monkeypatch, tmp_path):
    monkeypatch.setattr(identity, "hf_hub_download", lambda repo, file: f"/cache/{repo}/snapshots/0a1b/{file}")
    assert model_files(resolve("someone/model")) == [["someone/model", "0a1b"]]


def test_a_loaded_model_is_its_tensors_and_config(folder):
    model = BertModel.from_pretrained(folder)
    before = live_sha256(model)
    assert live_sha256(BertModel.from_pretrained(shutil.copytree(folder, folder.with_name("copy")))) == before
    with torch.no_grad():
        model.encoder.layer[0].output.dense.bias[0] += 1
    assert live_sha256(model) != before


def test_a_processor_is_the_same_in_another_process_elsewhere_and_after_it_was_used(folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    before = processor_sha256(tokenizer)
    tokenizer(["a dog"], truncation=True, max_length=4, padding="max_length")
    assert processor_sha256(tokenizer) == before
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    program = (
        "import sys; from transformers import AutoTokenizer; from hf_pe.run.identity import processor_sha256\n"
        "print(processor_sha256(AutoTokenizer.from_pretrained(sys.argv[1])))"
    )
    done = subprocess.run([sys.executable, "-c", program, moved], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == before
    tokenizer.add_tokens(["elephant"])
    assert processor_sha256(tokenizer) != before


def test_a_change_makes_other_stages_from_there_on(folder, tmp_path):
    teacher = shutil.copytree(folder, tmp_path / "teacher")
    distil = Distillation(steps=2, teachers=[{"model": str(teacher)}])

    def names(*recipes, origin=None, **variants):
        chain, copies = stage_ids(origin or {"seed": "0"}, recipes, variants)
        return [stage.folder_name for stage in (*chain, *copies.values())]

    before = names(PRUNE, distil, nf4=QUANTIZE)
    assert [name.rpartition("-")[0] for name in before] == ["1-prune", "2-distil", "variant-nf4"]

    def kept(after):
        return [a == b for a, b in zip(before, after, strict=True)]

    assert kept(names(PRUNE, distil, nf4=QUANTIZE)) == [True, True, True]
    assert kept(names(PRUNE, distil, nf4=BitsAndBytesQuantization(method="fp4"))) == [True, True, False]
    assert kept(names(PRUNE, Distillation(steps=3, teachers=distil.teachers), nf4=QUANTIZE)) == [True, False, False]
    assert kept(names(StructuredPruning(keep={"ffn": 0.25}), distil, nf4=QUANTIZE)) == [False, False, False]
    assert kept(names(PRUNE, distil, origin={"seed": "1"}, nf4=QUANTIZE)) == [False, False, False]
    add(teacher / "model.safetensors", 1e-3)
    assert kept(names(PRUNE, distil, nf4=QUANTIZE)) == [True, False, False]


def test_a_backbone_is_its_weights(folder):
    swaps = {str(folder): BackboneSwap(to=str(folder)), "preset": BackboneSwap(to="mobilenet_v1_0.25")}
    before = {name: stage_ids({}, [swap], {}) for name, swap in swaps.items()}
    add(folder / "model.safetensors", 1e-3)
    after = {name: stage_ids({}, [swap], {}) for name, swap in swaps.items()}
    assert before[str(folder)] != after[str(folder)]
    assert before["preset"] == after["preset"]


def test_whatever_stages_are_made_from_is_named(folder, tokenizer, monkeypatch):
    examples = load_examples(TEXTS)

    def origin(task=None, examples=examples, evaluate=None, seed=0, dtype=None):
        source = resolve(str(folder), dtype=dtype)
        return origin_of(source, None, tokenizer, task or Embedding(), examples, evaluate, seed)

    def differ(other):
        return [what for what, value in other.items() if value != before[what]]

    before = origin()
    assert origin() == before
    assert differ(origin(seed=1)) == ["another seed"]
    assert differ(origin(dtype="bfloat16")) == ["another dtype of its weights"]
    assert differ(origin(task=Embedding("cls"))) == ["another task"]
    assert differ(origin(examples=load_examples(TEXTS[1:]))) == ["other data"]
    shorter = examples.config.model_copy(update={"max_length": 9})
    assert differ(origin(examples=replace(examples, config=shorter))) == ["other settings of the data"]
    assert differ(origin(evaluate=len)) == ["another evaluate function"]
    add(folder / "model.safetensors", 1e-3)
    assert differ(origin()) == ["another model (its weights or its config)"]
    monkeypatch.setattr(identity.provenance, "versions", lambda: dict.fromkeys(identity.VERSIONS, "9.9"))
    assert differ(origin())[-1] == "other versions of hf_pe, transformers or torch"
