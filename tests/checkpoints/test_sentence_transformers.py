"""sentence-transformers' files: what is read of them, what is refused, and what comes along."""

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertModel

from hf_pe import StructuredPruning, UsageError, compress, cut_checkpoint
from hf_pe.checkpoints.load import load_model
from hf_pe.checkpoints.processor import load_processor
from hf_pe.checkpoints.reload import ReloadedFolder
from hf_pe.checkpoints.save import save_model, weight_hashes
from hf_pe.checkpoints.sentence_source import sentence_modules
from hf_pe.checkpoints.sentence_transformers import TOKENIZATION, copy_modules, module_folders, read_sentence_modules
from hf_pe.checkpoints.source import resolve
from hf_pe.data import DataConfig, load_examples
from hf_pe.errors import ReloadError
from hf_pe.files.hashes import value_sha256
from hf_pe.hub.card import render_card
from hf_pe.run.folder import finish_result, write_result
from hf_pe.tasks.infer import find_task
from tests.helpers import TEXTS, needs_package

NAMES = "sentence_transformers.models."


def module(number, kind, path):
    return {"idx": number, "name": str(number), "path": path, "type": f"{NAMES}{kind}"}


@pytest.fixture
def folder(bert_folder, tmp_path):
    """A tiny model with mean pooling, a dense layer, normalisation and a default prompt."""
    place = shutil.copytree(bert_folder, tmp_path / "sentences")
    modules = [
        module(0, "Transformer", ""), module(1, "Pooling", "1_Pooling"), module(2, "Dropout", "2_Dropout"),
        module(3, "Dense", "3_Dense"), module(4, "Normalize", "4_Normalize"),
    ]  # fmt: skip
    (place / "modules.json").write_text(json.dumps(modules))
    for each in ("1_Pooling", "2_Dropout", "3_Dense"):
        (place / each).mkdir()
    pooling = {"word_embedding_dimension": 64, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    (place / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (place / "2_Dropout" / "config.json").write_text('{"dropout": 0.1}')
    dense = {
        "in_features": 64,
        "out_features": 24,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    (place / "3_Dense" / "config.json").write_text(json.dumps(dense))
    draw = torch.Generator().manual_seed(0)
    weights = {"linear.weight": torch.randn(24, 64, generator=draw), "linear.bias": torch.randn(24, generator=draw)}
    save_file(weights, place / "3_Dense" / "model.safetensors")
    (place / "sentence_bert_config.json").write_text('{"max_seq_length": 12, "do_lower_case": false}')
    prompts = {"prompts": {"query": "the dog ", "passage": ""}, "default_prompt_name": "query"}
    (place / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    return place


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def change(path, **settings):
    known = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(known | settings), "utf-8")


def test_embeddings_are_those_of_sentence_transformers(folder):
    needs_package("sentence_transformers")
    from sentence_transformers import SentenceTransformer

    source = resolve(str(folder))
    task = find_task("embedding", source, load_model(source, BertModel).config)
    model, tokenizer = load_model(source, BertModel), load_processor(source)
    long = " ".join(TEXTS[:4])
    expected = SentenceTransformer(str(folder), device="cpu").encode([*TEXTS[:5], long], convert_to_tensor=True)
    torch.testing.assert_close(task.encode(model, tokenizer, [*TEXTS[:5], long]), expected, atol=1e-5, rtol=1e-4)
    data = task.prepare(load_examples(TEXTS), tokenizer, model.config)
    assert task.embed(model, data, data.eval).shape[1] == 24
    assert "begins with the model's prompt `the dog `" in task.describe(data)


def test_all_modules_come_along_and_the_result_is_opened_and_compared(folder, tmp_path, result):
    needs_package("sentence_transformers")
    source = resolve(str(folder))
    model, expected_report = load_model(source, BertModel), result[0].report
    after = expected_report.after.model_copy(update={"parameters": model.num_parameters()})
    expected_report = expected_report.model_copy(update={"after": after, "folder": None})
    report = write_result(
        model, load_processor(source), tmp_path / "small", "small", expected_report, "AutoModel", source
    )
    written = finish_result(report, tmp_path / "small")
    names = {str(path.relative_to(tmp_path / "small")) for path in (tmp_path / "small").rglob("*")}
    expected = {"1_Pooling/config.json", "2_Dropout/config.json", "3_Dense/config.json", "3_Dense/model.safetensors"}
    assert expected | {"4_Normalize", "modules.json", "config_sentence_transformers.json"} <= names
    assert written.reload.sentence_difference < 1e-4
    assert "3_Dense/model.safetensors" in written.reload.sha256
    card = (tmp_path / "small" / "README.md").read_text("utf-8")
    assert 'It also opens with `SentenceTransformer("small")`' in card
    tampered = load_file(tmp_path / "small" / "3_Dense" / "model.safetensors")
    save_file({name: weight + 1 for name, weight in tampered.items()}, tmp_path / "small/3_Dense/model.safetensors")
    assert weight_hashes(tmp_path / "small") != written.reload.sha256


def test_a_hidden_width_that_the_dense_layer_does_not_read_is_refused_before_work(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_pe.checkpoints.load._require_loadable", lambda *_, **__: pytest.fail("weights were loaded"))
    with pytest.raises(UsageError, match="reads embeddings of 64 values, and the model would give it 32"):
        compress(str(folder), [StructuredPruning(keep={"hidden": 0.5})], data=TEXTS)
    with pytest.raises(UsageError, match="reads embeddings of 64 values, and the model would give it 32"):
        cut_checkpoint(str(folder), tmp_path / "cut", {"hidden": 0.5})
    assert not (tmp_path / "cut").exists()
    with pytest.raises(UsageError, match="reads embeddings of 64 values"):
        read_sentence_modules(folder).apply_head(torch.zeros(2, 32))


def test_modules_come_along_when_a_checkpoint_is_cut(folder, tmp_path):
    cut_checkpoint(str(folder), tmp_path / "cut", {"ffn": 0.5})
    assert (tmp_path / "cut" / "3_Dense" / "model.safetensors").is_file()
    assert read_sentence_modules(tmp_path / "cut").prompt == "the dog "


@pytest.mark.parametrize("path", ["../1_Pooling", "/elsewhere", "a/../../b", "C:\\x", "..\\x"])
def test_a_path_that_leaves_the_folder_is_refused(folder, path):
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["path"] = path
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UsageError, match="lies outside of the model's own"):
        resolve(str(folder))


def test_a_folder_that_is_a_link_elsewhere_is_refused(folder, tmp_path):
    shutil.move(folder / "3_Dense", tmp_path / "elsewhere")
    (folder / "3_Dense").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=r"3_Dense is a link that leads out of the folder sentences"):
        module_folders(folder)


@pytest.mark.parametrize(
    ("file", "settings", "message"),
    [
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pools by max and mean"),
        ("1_Pooling/config.json", {"pooling_mode": "lasttoken"}, "pools by lasttoken"),
        ("1_Pooling/config.json", {"pooling_mode": ["cls", "mean"]}, "pools by cls and mean"),
        ("1_Pooling/config.json", {"include_prompt": False}, "include_prompt: false"),
        ("3_Dense/config.json", {"activation_function": "os.system"}, "expected a class of torch.nn"),
        ("3_Dense/config.json", {"activation_function": "torch.nn.functional.relu"}, "expected a class of torch.nn"),
        ("3_Dense/config.json", {"module_input_name": "token_embeddings"}, "expected dense layers after pooling"),
        ("3_Dense/config.json", {"out_features": 5}, "cannot be built"),
        ("config_sentence_transformers.json", {"default_prompt_name": "other"}, "expected one of query, passage"),
    ],
)
def test_what_is_not_known_is_refused(folder, file, settings, message):
    change(folder / file, **settings)
    with pytest.raises(UsageError, match=message):
        sentence_modules(resolve(str(folder)))


def test_prompts_that_are_not_used_may_be_left_out_of_pooling(folder):
    """A prompt without being the default one is never put before a text."""
    (folder / "config_sentence_transformers.json").write_text('{"prompts": {"query": "query: "}}', "utf-8")
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps(json.loads(pooling.read_text("utf-8")) | {"include_prompt": False}), "utf-8")
    assert read_sentence_modules(folder).pooling == "mean"


def test_other_modules_are_refused_for_embeddings_only(folder):
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([*modules, module(5, "LSTM", "5_LSTM")]))
    source = resolve(str(folder))
    config = load_model(source, BertModel).config
    with pytest.raises(UsageError, match="has the module LSTM after the model"):
        find_task("embedding", source, config)
    assert find_task("masked_lm", source, config).name == "masked_lm"


@pytest.mark.parametrize(
    ("settings", "pooling"),
    [({"pooling_mode": "cls"}, "cls"), ({"pooling_mode": ["mean"]}, "mean"), ({}, "mean")],
)
def test_newer_settings_of_pooling_are_read(folder, settings, pooling):
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"embedding_dimension": 64, **settings}))
    assert sentence_modules(resolve(str(folder))).pooling == pooling


def test_prompts_without_a_default_are_said(folder, tokenizer):
    change(folder / "config_sentence_transformers.json", default_prompt_name=None)
    source = resolve(str(folder))
    config = load_model(source, BertModel).config
    data = find_task("embedding", source, config).prepare(load_examples(TEXTS), tokenizer, config)
    assert data.warnings[0].startswith("The model has prompts (query, passage) and no default one")
    plain = tokenizer(TEXTS[0])["input_ids"]
    assert data.task.tokenized(TEXTS[:1], tokenizer, 128)["input_ids"] == [plain]


def test_texts_are_made_lower_case_where_the_client_does_so(folder, tokenizer):
    change(folder / "sentence_bert_config.json", do_lower_case=True)
    assert sentence_modules(resolve(str(folder))).text("Dog") == "the dog dog"


@pytest.mark.parametrize("name", TOKENIZATION[1:])
def test_settings_under_an_older_name_are_read_and_come_along(folder, tmp_path, name):
    (folder / "sentence_bert_config.json").rename(folder / name)
    change(folder / name, do_lower_case=True)
    source = resolve(str(folder))
    modules = read_sentence_modules(folder)
    assert (modules.max_tokens, modules.lowercase) == (12, True)
    save_model(load_model(source, BertModel), None, tmp_path / "out", source)
    cut_checkpoint(str(folder), tmp_path / "cut", {"ffn": 0.5})
    for place in (tmp_path / "out", tmp_path / "cut"):
        assert (place / name).read_bytes() == (folder / name).read_bytes()
        assert read_sentence_modules(place).max_tokens == 12


def test_pickled_weights_of_a_dense_layer_need_leave_and_are_written_as_safetensors(folder, tmp_path):
    weights = load_file(folder / "3_Dense" / "model.safetensors")
    (folder / "3_Dense" / "model.safetensors").unlink()
    torch.save(weights, folder / "3_Dense" / "pytorch_model.bin")
    with pytest.raises(UsageError, match="allow_pickle"):
        sentence_modules(resolve(str(folder)))
    source = resolve(str(folder), allow_pickle=True)
    assert sentence_modules(source).head is not None
    copy_modules(folder, tmp_path / "out", 64)
    assert {path.name for path in (tmp_path / "out" / "3_Dense").iterdir()} == {"config.json", "model.safetensors"}


def test_a_planted_pickle_of_a_dense_layer_does_not_run(folder, tmp_path):
    (folder / "3_Dense" / "model.safetensors").unlink()
    marker = tmp_path / "ran"
    (folder / "3_Dense" / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(str(marker)), protocol=2))
    with pytest.raises(UsageError, match=r"3_Dense/pytorch_model.bin is no pickle of tensors alone"):
        cut_checkpoint(str(folder), tmp_path / "cut", {"ffn": 0.5})
    with pytest.raises(UsageError, match=r"3_Dense/pytorch_model.bin is no pickle of tensors alone"):
        sentence_modules(resolve(str(folder), allow_pickle=True))
    assert not marker.exists() and not (tmp_path / "cut").exists()


def test_a_dense_layer_counts_in_the_distillation(folder, tokenizer):
    source = resolve(str(folder))
    model = load_model(source, BertModel)
    task = find_task("embedding", source, model.config)
    data = task.prepare(
        load_examples(DataConfig(train="builtin:pydoc", limit=8, eval_limit=4)), tokenizer, model.config
    )
    batch = data.collate([data.train[number] for number in range(4)])
    loss = task.signals(model, batch)["embeddings"].sum()
    loss.backward()
    assert model.encoder.layer[0].output.dense.weight.grad is not None
    assert all(parameter.grad is None for parameter in task.modules.head.parameters())


def test_other_embeddings_than_those_that_were_evaluated_are_no_result(folder, tmp_path, result, monkeypatch):
    monkeypatch.setattr("hf_pe.run.folder.sentence_difference", lambda *_: 0.3)
    monkeypatch.setattr("hf_pe.run.folder.reopened", lambda folder, model, *_: (_seen(model, result), ""))
    source = resolve(str(folder))
    with pytest.raises(ReloadError, match="gives other embeddings when SentenceTransformer opens it"):
        write_result(
            load_model(source, BertModel), load_processor(source), tmp_path / "out", "out", result[0].report,
            "AutoModel", source,
        )  # fmt: skip


def test_a_card_states_only_what_sentence_transformers_was_measured_to_do(result, tmp_path):
    expected_report = result[0].report
    for difference, expected in ((None, False), (1e-7, True)):
        reload = expected_report.reload.model_copy(update={"sentence_difference": difference})
        report = expected_report.model_copy(update={"reload": reload, "library_name": "sentence-transformers"})
        assert ("It also opens with `SentenceTransformer" in render_card(report)) is expected


def _seen(model, result):
    """What a fresh process would see of a folder that holds `model`."""
    hashes = {name: value_sha256(value) for name, value in model.state_dict().items()}
    parameters = result[0].report.after.parameters
    return ReloadedFolder(parameters=parameters, peak_memory_bytes=None, max_difference=0.0, hashes=hashes)
