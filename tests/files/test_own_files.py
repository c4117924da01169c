"""No link and no name leads out of a model's folder, and a result takes along what a list names."""

import json
import os
import shutil
from pathlib import Path

import pytest
from transformers import BertModel

from hf_pe import cut_checkpoint
from hf_pe.checkpoints.classes import class_for
from hf_pe.checkpoints.config import load_config
from hf_pe.checkpoints.load import load_model
from hf_pe.checkpoints.save import save_model
from hf_pe.checkpoints.source import Source, resolve
from hf_pe.dummies.tiny import randomize_weights_
from hf_pe.errors import UsageError
from hf_pe.files.own_files import (
    carried_files,
    code_files,
    is_licence,
    is_own,
    left_behind,
    require_own_files,
    without_missing_code_,
)
from hf_pe.hub import Publish, prepare, write_card
from hf_pe.hub.pictures import PICTURES
from hf_pe.progress import listen
from hf_pe.report import read_report, write_report
from tests.helpers import bert_config
from tests.hub.test_card import report

SECRETS = (
    ".env",
    ".netrc",
    "training_args.bin",
    "optimizer.pkl",
    "train.py",
    "run.sh",
    "notes.txt",
    "data.npy",
    "key.json",
)
BESIDE = (
    "LICENSE.md",
    "NOTICE",
    "chat_template.jinja",
    "preprocessor_config.json",
    "spiece.model",
    "generation_config.json",
)


@pytest.fixture
def folder(bert_folder, tmp_path):
    """A copy of a tiny model, free to be changed."""
    return shutil.copytree(bert_folder, tmp_path / "model")


def in_cache(folder: Path, place: Path) -> Path:
    """Lay a model's folder out as the Hub's cache does: links into `blobs`; returns the snapshot."""
    snapshot, blobs = place / "models--a--b" / "snapshots" / "c0ffee", place / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    for path in (path for path in sorted(folder.rglob("*")) if path.is_file()):
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        blob = blobs / path.relative_to(folder).as_posix().replace("/", "-")
        shutil.copyfile(path, blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def pooled(folder: Path) -> Path:
    kinds = {"": "Transformer", "1_Pooling": "Pooling"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    (folder / "modules.json").write_text(json.dumps(modules), "utf-8")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}', "utf-8")
    return folder


def test_a_snapshot_of_the_hubs_cache_is_a_models_own(folder, tmp_path):
    snapshot = in_cache(pooled(folder), tmp_path)
    source = resolve(str(snapshot))
    model = load_model(source, class_for(load_config(source)))
    save_model(model, None, tmp_path / "out", source)
    assert json.loads((tmp_path / "out" / "1_Pooling" / "config.json").read_text("utf-8"))
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_symlink()]
    cut_checkpoint(str(snapshot), tmp_path / "cut", {"ffn": 0.5})
    assert (tmp_path / "cut" / "tokenizer.json").is_file()


def test_a_link_inside_the_folder_is_the_models_own(folder):
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    (folder / "model.safetensors").symlink_to("weights.safetensors")
    assert load_model(resolve(str(folder)), BertModel)


def outside(tmp_path: Path) -> Path:
    place = tmp_path / "outside"
    place.mkdir()
    (place / "private.json").write_text('{"private": 1}', "utf-8")
    return place


@pytest.mark.parametrize("name", ["generation_config.json", "notes.txt", "tokenizer.json"])
def test_a_file_that_is_a_link_elsewhere_is_refused(folder, tmp_path, name):
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(outside(tmp_path) / "private.json")
    with pytest.raises(UsageError, match=rf"{name} is a link that leads out of the folder model.*cp -rL"):
        cut_checkpoint(str(folder), tmp_path / "cut", {"ffn": 0.5})
    assert not (tmp_path / "cut").exists()


def test_a_folder_that_is_a_link_elsewhere_is_refused(folder, tmp_path):
    (folder / "additional_chat_templates").symlink_to(outside(tmp_path))
    with pytest.raises(UsageError, match="additional_chat_templates is a link that leads out"):
        resolve(str(folder))


@pytest.mark.parametrize("how", ["blobs are a link", "another file of the cache", "blob is a link"])
def test_what_only_looks_like_the_hubs_cache_is_refused(folder, tmp_path, how):
    snapshot = in_cache(folder, tmp_path)
    blobs, place = snapshot.parent.parent / "blobs", outside(tmp_path)
    if how == "blobs are a link":
        shutil.copytree(blobs, place, dirs_exist_ok=True)
        shutil.rmtree(blobs)
        blobs.symlink_to(place)
    else:
        link = blobs / "config.json" if how == "blob is a link" else snapshot / "config.json"
        link.unlink()
        link.symlink_to(place / "private.json" if how == "blob is a link" else "../../refs")
    with pytest.raises(UsageError, match="is a link that leads out"):
        resolve(str(snapshot))


@pytest.mark.parametrize("name", ["../outside/private.json", "/etc/hostname", "a/../../b", "..\\b", "C:\\b"])
@pytest.mark.parametrize("file", ["model.safetensors.index.json", "tokenizer_config.json"])
def test_a_name_that_leaves_the_folder_is_refused(folder, tmp_path, file, name):
    content = {"weight_map": {"w": name}, "fast_tokenizer_files": [name]}
    (folder / file).write_text(json.dumps(content), "utf-8")
    with pytest.raises(UsageError, match="which lies outside of the model's own folder"):
        resolve(str(folder))


def test_an_adapter_is_read_from_its_own_folder(folder, tmp_path):
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").symlink_to(outside(tmp_path) / "private.json")
    with pytest.raises(UsageError, match=r"adapter_config.json is a link that leads out"):
        resolve(str(folder))


def test_a_cut_takes_along_what_a_model_needs_and_names_the_rest(folder, tmp_path):
    for name in (*SECRETS, *BESIDE):
        (folder / name).write_text("{}", "utf-8")
    (folder / "additional_chat_templates").mkdir()
    for name in ("tool.jinja", ".hidden.jinja", "run.sh"):
        (folder / "additional_chat_templates" / name).write_text("{}", "utf-8")
    messages = []
    with listen(lambda what, *_: messages.append(what)):
        cut_checkpoint(str(folder), tmp_path / "cut", {"ffn": 0.5})
    names = {path.relative_to(tmp_path / "cut").as_posix() for path in (tmp_path / "cut").rglob("*")}
    assert names == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", ".hf_pe.json", *BESIDE,
        "additional_chat_templates", "additional_chat_templates/tool.jinja",
    }  # fmt: skip
    (sentence,) = [each for each in messages if "not copied" in each]
    assert all(name in sentence for name in sorted(SECRETS)[:8]) and "and 1 more" in sentence
    assert "model.safetensors" not in sentence and "README" not in sentence


def test_the_modules_of_a_sentence_model_take_along_what_they_need(folder, tmp_path):
    pooled(folder)
    for name in (".env.json", "private.txt", "hook.py"):
        (folder / "1_Pooling" / name).write_text("x")
    save_model(randomize_weights_(BertModel(bert_config())), None, tmp_path / "out", resolve(str(folder)))
    assert [path.name for path in (tmp_path / "out" / "1_Pooling").iterdir()] == ["config.json"]


def test_code_comes_along_only_by_the_users_word(tmp_path):
    """The modules that the settings name, and what they import from beside; never another script."""
    (tmp_path / "modeling_own.py").write_text("from .parts import part\n", "utf-8")
    for name in ("parts", "tokenization_own", "pooling_own", "train", "setup"):
        (tmp_path / f"{name}.py").write_text("part = 1\n", "utf-8")
    places = {"AutoModel": "modeling_own.Own", "AutoConfig": "someone/else--configuration.Own"}
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": places}), "utf-8")
    tokenizer = {"auto_map": {"AutoTokenizer": ["tokenization_own.Own", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer), "utf-8")
    (tmp_path / "modules.json").write_text(json.dumps([{"path": "1", "type": "pooling_own.Own"}]), "utf-8")
    own = {"modeling_own.py", "parts.py", "tokenization_own.py", "pooling_own.py"}
    assert {path.name for path in code_files(tmp_path)} == own
    assert not [path for path in carried_files(tmp_path) if path.suffix == ".py"]
    assert {path.name for path in carried_files(tmp_path, own_code=True) if path.suffix == ".py"} == own
    assert left_behind(tmp_path, own_code=True) == ["setup.py", "train.py"]
    trusted = Source(name="own", path=str(tmp_path), trust_remote_code=True)
    save_model(randomize_weights_(BertModel(bert_config())), None, tmp_path / "out", trusted)
    assert {path.name for path in (tmp_path / "out").glob("*.py")} == own


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("LICENSE", True), ("license.txt", True), ("LICENCE-MIT", True), ("NOTICE.md", True), ("USE_POLICY.md", True),
        ("LICENSE.py", False), ("license_key.json", False), (".license", False), ("noticeboard.txt", False),
    ],
)  # fmt: skip
def test_licences_are_known_by_their_names(name, expected):
    assert is_licence(name) == expected


def test_a_card_is_read_and_written_in_its_own_folder(tmp_path):
    """Neither the README.md nor a picture is followed out of the folder."""
    place = tmp_path / "result"
    place.mkdir()
    write_report(report(), place)
    private = outside(tmp_path) / "private.json"
    picture = next(name for name, (_, draw) in PICTURES.items() if draw(report(), tmp_path / name))
    (place / picture).symlink_to(private)
    write_card(report(), place)
    assert private.read_text("utf-8") == '{"private": 1}' and not (place / picture).is_symlink()
    (place / "README.md").unlink()
    (place / "README.md").symlink_to(private)
    with pytest.raises(UsageError, match=r"README.md is a link that leads out"):
        write_card(report(), place)


def test_a_variant_that_is_a_link_elsewhere_does_not_go_out(tmp_path):
    for place in (tmp_path / "result" / "main", tmp_path / "outside" / "nf4"):
        place.mkdir(parents=True)
        write_report(report(), place)
    (tmp_path / "result" / "nf4").symlink_to(tmp_path / "outside" / "nf4")
    with pytest.raises(UsageError, match="leads out of the folder result"):
        prepare(tmp_path / "result", Publish(repo="someone/small"), verify=False)
    (tmp_path / "outside" / "report.json").symlink_to(tmp_path / "result" / "main" / "report.json")
    with pytest.raises(UsageError, match=r"report.json is a link that leads out"):
        read_report(tmp_path / "outside")


def test_a_path_with_links_on_both_sides_is_own(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    assert is_own(tmp_path / "link", tmp_path / "link" / "config.json")


def test_licences_notices_and_tokenizers_of_processors_come_along(tmp_path):
    carried = ("MODEL_LICENSE", "LICENSE.pdf", "THIRD_PARTY_NOTICES.txt", "tiktoken.model", "ice_text.model")
    for name in (*carried, "license_key.txt", "notes.txt"):
        (tmp_path / name).write_text("x")
    (tmp_path / "qformer_tokenizer").mkdir()
    for name in ("vocab.txt", "secret.txt"):
        (tmp_path / "qformer_tokenizer" / name).write_text("x")
    assert {path.name for path in carried_files(tmp_path)} == {*carried, "vocab.txt"}


def test_settings_name_no_code_that_stayed_behind(tmp_path):
    settings = {"model_type": "bert", "auto_map": {"AutoConfig": "configuration_x.XConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    without_missing_code_(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == {"model_type": "bert"}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "configuration_x.py").write_text("")
    without_missing_code_(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == settings


def test_links_in_folders_that_nothing_reads_are_no_matter(tmp_path):
    (tmp_path / "model" / "venv").mkdir(parents=True)
    (tmp_path / "model" / "venv" / "python").symlink_to("/usr/bin/env")
    require_own_files(tmp_path / "model")
