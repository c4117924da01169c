import json
import os
import shutil
import subprocess
import sys
import threading

import pytest
import torch
import yaml
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from hf_pe import Distillation, compress
from hf_pe.cli import app
from hf_pe.errors import UsageError
from hf_pe.hub import Publish, PushError, check_access, prepare, push
from hf_pe.hub.seal import changes_since_sealed, result_files
from hf_pe.progress import listen
from hf_pe.report import read_report, write_report
from hf_pe.run.folder import seal_result
from tests.helpers import TEXTS, shared
from tests.hub.faults import REPO, impatient
from tests.hub.server import TOKEN, Hub


@pytest.fixture
def hub():
    made = Hub()
    with impatient(5), made.serve():
        yield made


@pytest.fixture
def api(hub):
    return HfApi(endpoint=hub.url, token=TOKEN)


@pytest.fixture
def folder(result, tmp_path):
    """A copy of one result, free to be changed."""
    return shutil.copytree(result[1] / "main", tmp_path / "small")


def files(hub, branch="main"):
    repo = hub.repos[REPO]
    return repo.commits[repo.branches[branch]][1]


def elsewhere(hub, tmp_path):
    """The environment of another machine, which has nothing yet and may ask the Hub."""
    env = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    return env | {
        "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1",
    }  # fmt: skip


def test_what_was_pushed_loads_with_plain_from_pretrained(hub, api, folder, result, tmp_path):
    push(folder, Publish(repo=REPO, load_back=True), api=api)
    assert hub.repos[REPO].private
    program = (
        "import sys, torch\n"
        "from transformers import AutoModel, AutoTokenizer\n"
        f"model = AutoModel.from_pretrained({REPO!r}); AutoTokenizer.from_pretrained({REPO!r})\n"
        "from safetensors.torch import save_file\n"
        "save_file({k: v.contiguous() for k, v in model.state_dict().items()}, sys.argv[1])\n"
        "assert 'hf_pe' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", program, tmp_path / "got.safetensors"], env=elsewhere(hub, tmp_path), check=True
    )
    got = load_file(tmp_path / "got.safetensors")
    assert all(torch.equal(v, got[k]) for k, v in result[0].model.state_dict().items())


def test_the_main_result_does_not_take_the_branch_of_a_variant(result):
    with pytest.raises(UsageError, match="branch: 'nf4' is the branch of the variant"):
        prepare(result[1], Publish(repo=REPO, branch="nf4"), verify=False)


def test_adapters_beside_quantized_weights_load_from_the_hub(hub, api, bert_folder, tmp_path):
    """And after a run that was resumed: both are one model for plain from_pretrained, here and there."""
    lora = {"base": "nf4", "rank": 4, "merge": False}
    call = {"data": TEXTS, "task": "embedding", "work": tmp_path / "work"}
    compress(str(bert_folder), [Distillation(steps=2, lora=lora)], **call)
    made = compress(str(bert_folder), [Distillation(steps=2, lora=lora)], resume=True, **call).save(tmp_path / "small")
    assert "beside weights quantized to nf4" in (tmp_path / "small" / "README.md").read_text("utf-8")
    push(tmp_path / "small", Publish(repo=REPO, load_back=True), api=api)
    assert json.loads(files(hub)["adapter_config.json"])["base_model_name_or_path"] == REPO
    program = (
        "import sys, torch\n"
        "from safetensors.torch import save_file\n"
        "from transformers import AutoModel\n"
        f"model = AutoModel.from_pretrained({REPO!r}).eval()\n"
        "with torch.no_grad(): found = model(input_ids=torch.arange(8)[None]).last_hidden_state\n"
        "save_file({'found': found.float().contiguous()}, sys.argv[1])\n"
    )
    subprocess.run(
        [sys.executable, "-c", program, tmp_path / "got.safetensors"], env=elsewhere(hub, tmp_path), check=True
    )
    with torch.no_grad():
        expected = made.model(input_ids=torch.arange(8)[None]).last_hidden_state
    assert torch.equal(load_file(tmp_path / "got.safetensors")["found"], expected.float())


MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]


def test_what_lies_beside_a_model_on_the_hub_comes_along(hub, api, folder, tmp_path):
    """Its licence and how it pools, which transformers does not fetch."""
    (folder / "modules.json").write_text(json.dumps(MODULES), "utf-8")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}', "utf-8")
    (folder / "LICENSE").write_text("MIT", "utf-8")
    seal_result(folder)
    push(folder, Publish(repo=REPO), api=api)
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from hf_pe.checkpoints.classes import class_for\nfrom hf_pe.checkpoints.config import load_config\nfrom hf_pe.checkpoints.load import load_model\nfrom hf_pe.checkpoints.save import save_model\nfrom hf_pe.checkpoints.sentence_source import sentence_modules\nfrom hf_pe.checkpoints.source import resolve\n"
        f"source = resolve({REPO!r})\n"
        "model = load_model(source, class_for(load_config(source)))\n"
        "save_model(model, None, Path(sys.argv[1]), source)\n"
        "print(sentence_modules(source).pooling)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "got"],
        env=elsewhere(hub, tmp_path),
        check=True,
        stdout=subprocess.PIPE,
    )
    assert done.stdout.decode().split() == ["cls"]
    assert {p.name for p in (tmp_path / "got").iterdir()} >= {"LICENSE", "modules.json", "1_Pooling", "config.json"}


def test_the_card_on_the_hub_names_the_repository(hub, api, folder):
    push(folder, Publish(repo=REPO), api=api, verify=False)
    card = files(hub)["README.md"].decode()
    assert f'AutoModel.from_pretrained("{REPO}")' in card
    assert read_report(folder).name == "small", "the folder itself is not changed"
    assert json.loads(hub.contents(REPO)["report.json"])["name"] == REPO


def test_a_second_push_sends_nothing_and_makes_no_commit(hub, api, folder):
    first = push(folder, Publish(repo=REPO), api=api, verify=False)
    commits, sent = len(hub.repos[REPO].commits), sum(hub.sent.values())
    again = push(folder, Publish(repo=REPO), api=api, verify=False)
    assert again[0].commit == first[0].commit
    assert not again[0].changed
    assert (len(hub.repos[REPO].commits), sum(hub.sent.values())) == (commits, sent)


def test_only_what_changed_is_sent_and_stale_shards_go(hub, api, folder):
    push(folder, Publish(repo=REPO), api=api, verify=False)
    repo = hub.repos[REPO]
    old = {**files(hub), "model-00001-of-00002.safetensors": b"stale", "notes.md": b"of a person"}
    repo.branches["main"] = repo.commit(repo.branches["main"], old)
    hub.reset()
    (folder / "extra.txt").write_text("new")
    sent = push(folder, Publish(repo=REPO), api=api, verify=False)
    assert sent[0].changed == ("extra.txt", "report.json"), "the report states the hash of every file"
    assert sent[0].removed == ("model-00001-of-00002.safetensors",)
    assert "notes.md" in files(hub)
    assert not hub.sent.keys() & {*read_report(folder).reload.sha256.values()}, "no weights are sent again"


def test_variants_are_branches_of_one_repository(hub, api, result):
    assert all(each.report.folder is None for each in prepare(result[1], Publish(repo=REPO), verify=False))
    sent = push(result[1], Publish(repo=REPO, tag="v1"), api=api, verify=False)
    assert [s.branch for s in sent] == ["nf4", "main"]
    assert hub.repos[REPO].tags["v1"] == hub.repos[REPO].branches["main"]
    for branch in ("main", "nf4"):
        card = files(hub, branch)["README.md"].decode()
        assert "| `main` |" in card
        assert "| `nf4` |" in card
    assert f'from_pretrained("{REPO}", revision="nf4")' in files(hub, "nf4")["README.md"].decode()


def test_a_pull_request_leaves_the_branch_alone_and_is_not_opened_twice(hub, api, folder):
    push(folder, Publish(repo=REPO), api=api, verify=False)
    (folder / "extra.txt").write_text("new")
    before = hub.repos[REPO].branches["main"]
    sent = push(folder, Publish(repo=REPO, create_pr=True), api=api, verify=False)
    again = push(folder, Publish(repo=REPO, create_pr=True), api=api, verify=False)
    assert sent[0].pull_request == again[0].pull_request == f"{hub.url}/{REPO}/discussions/1"
    assert hub.repos[REPO].branches["main"] == before


def test_what_people_wrote_on_the_hub_survives(hub, api, folder):
    push(folder, Publish(repo=REPO), api=api, verify=False)
    repo = hub.repos[REPO]
    card = files(hub)["README.md"].decode()
    edited = card.replace("---\n\n", "new_version: someone/next\n---\n\nBy hand.\n\n", 1).replace("1.5x", "9.9x")
    repo.branches["main"] = repo.commit(repo.branches["main"], {**files(hub), "README.md": edited.encode()})
    report = read_report(folder)
    write_report(report.model_copy(update={"date": "2031-01-01"}), folder)
    push(folder, Publish(repo=REPO), api=api, verify=False)
    now = files(hub)["README.md"].decode()
    assert "By hand." in now
    assert "new_version: someone/next" in now
    assert "2031-01-01" in now


@pytest.mark.parametrize("case", ["not_yaml", "latin1"])
def test_a_card_on_the_hub_that_cannot_be_read_stops_the_push_before_anything_is_sent(hub, api, result, case):
    """Of all branches: the card of the main one is read before a variant is sent."""
    push(result[1], Publish(repo=REPO), api=api, verify=False)
    repo = hub.repos[REPO]
    card = shared(f"cases/{'remote' if case == 'not_yaml' else 'base'}_cards/{case}.md").read_bytes()
    repo.branches["main"] = repo.commit(repo.branches["main"], {**files(hub), "README.md": card})
    repo.branches["nf4"] = repo.commit(repo.branches["nf4"], {**files(hub, "nf4"), "README.md": b"# mine"})
    before = hub.snapshot()
    with pytest.raises(UsageError, match=r"README.md of someone/small, branch main, is a card that cannot be merged"):
        push(result[1], Publish(repo=REPO), api=api, verify=False)
    assert hub.snapshot() == before


def test_two_pushes_at_once_end_whole(hub, api, folder, tmp_path):
    push(folder, Publish(repo=REPO), api=api, verify=False)
    other = shutil.copytree(folder, tmp_path / "other")
    (folder / "who.txt").write_text("one")
    (other / "who.txt").write_text("two")
    hub.barrier = threading.Barrier(2)
    outcomes = []

    def go(place):
        try:
            push(place, Publish(repo=REPO), api=api, verify=False)
            outcomes.append("sent")
        except PushError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=go, args=(place,)) for place in (folder, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(o == "sent" for o in outcomes) == [False, True]
    assert any("someone else changed" in o for o in outcomes)


def test_a_transfer_that_broke_goes_on_where_it_stopped(hub, api, folder):
    from tests.hub.server import Fault

    save_file({"x": torch.ones(9)}, folder / "more.safetensors")
    report = read_report(folder)
    from hf_pe.checkpoints.save import weight_hashes

    reload = report.reload.model_copy(update={"sha256": weight_hashes(folder)})
    write_report(report.model_copy(update={"reload": reload}), folder)
    hub.faults = [Fault("commit", "reset before", times=99)]
    with pytest.raises(PushError, match="Push again to continue from here"):
        push(folder, Publish(repo=REPO), api=api, verify=False)
    once = {oid: size for oid, size in hub.sent.items() if oid != "in commits"}
    assert once
    hub.faults = []
    push(folder, Publish(repo=REPO), api=api, verify=False)
    assert {oid: size for oid, size in hub.sent.items() if oid != "in commits"} == once


def no_network(*args, **kwargs):
    raise AssertionError("something was sent")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "note.txt").write_text("hf_" + "A" * 34), r"note.txt, line 1: Hugging Face token: hf_AAA"),
        (lambda f: (f / "note.txt").write_text("made in /home/anna/models"), "absolute path: /home/anna"),
        (lambda f: (f / "run.log").write_text("mail anna@example.org"), "e-mail address: anna@example.org"),
        (lambda f: (f / "optimizer.pt").write_bytes(b"x"), "only safetensors files are pushed"),
        (lambda f: (f / "X.BIN").write_bytes(b"x"), r"X\.BIN may run code"),
        (lambda f: (f / "X.PKL").write_bytes(b"x"), r"X\.PKL may run code"),
        (lambda f: (f / "link.txt").symlink_to(f / "config.json"), "is a link"),
        (lambda f: (f / "report.json").unlink(), "no report.json"),
        (lambda f: (f / "config.json").write_text("{}"), "config.json changed since the card's numbers"),
        (
            lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes() + b" "),
            "changed since",
        ),
    ],
)
def test_nothing_wrong_is_sent(folder, monkeypatch, spoil, message):
    spoil(folder)
    monkeypatch.setattr(HfApi, "whoami", no_network)
    with pytest.raises(UsageError, match=message):
        push(folder, Publish(repo=REPO))


def test_no_text_of_a_report_is_run(folder, tmp_path):
    """Neither Python lines of an older report, nor a name that ends its string."""
    marker = tmp_path / "ran"
    payload = f"open({str(marker)!r}, 'w').close()"
    content = json.loads((folder / "report.json").read_text("utf-8"))
    content["name"] = f'small"); {payload} #'
    content["reload"] |= {"snippet": f"{payload}\n{payload}", "loading": None}
    content |= {"files": {}, "seal": None}
    (folder / "report.json").write_text(json.dumps(content), "utf-8")
    done = CliRunner().invoke(app, ["push", str(folder), REPO, "--dry-run"])
    assert done.exit_code == 0, done.output
    assert f'model = AutoModel.from_pretrained("{REPO}")' in done.output
    assert not marker.exists()


def changed_report(folder):
    content = json.loads((folder / "report.json").read_text("utf-8"))
    content["after"]["quality"]["spearman"] = 0.99
    (folder / "report.json").write_text(json.dumps(content), "utf-8")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (changed_report, r"report\.json was changed"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), r"changed: tokenizer\.json"),
        (lambda f: (f / "plan.json").unlink(), r"missing: plan\.json"),
        (lambda f: (f / "extra.txt").write_text("new"), r"added: extra\.txt"),
    ],
)
def test_what_was_changed_since_it_was_made_is_noticed_and_can_be_taken_over(folder, monkeypatch, spoil, message):
    monkeypatch.setattr("hf_pe.hub.outgoing.verify_reload", lambda *_: None)
    assert prepare(folder, Publish(repo=REPO))
    spoil(folder)
    with pytest.raises(UsageError, match=rf"has changed since it was made: {message}\. Undo that.*hf-pe seal"):
        prepare(folder, Publish(repo=REPO))
    done = CliRunner().invoke(app, ["seal", str(folder)])
    assert done.exit_code == 0, done.output
    assert prepare(folder, Publish(repo=REPO))


def test_a_card_that_was_edited_goes_along_and_is_said(folder, monkeypatch):
    monkeypatch.setattr("hf_pe.hub.outgoing.verify_reload", lambda *_: None)
    card = (folder / "README.md").read_text("utf-8")
    (folder / "README.md").write_text(f"{card}\nBy hand.\n", "utf-8")
    messages = []
    with listen(lambda what, *_: messages.append(what)):
        (outgoing,) = prepare(folder, Publish(repo=REPO))
    assert b"By hand." in outgoing.files["README.md"]
    assert [each for each in messages if "README.md was edited" in each]


def test_an_older_report_is_not_refused(folder, monkeypatch):
    monkeypatch.setattr("hf_pe.hub.outgoing.verify_reload", lambda *_: None)
    report = read_report(folder)
    reload = report.reload.model_copy(update={"loading": None})
    write_report(report.model_copy(update={"files": {}, "seal": None, "reload": reload}), folder)
    messages = []
    with listen(lambda what, *_: messages.append(what)):
        assert prepare(folder, Publish(repo=REPO))
    assert [each for each in messages if "without hashes of all files" in each]


def test_a_seal_that_was_taken_off_is_missed(folder):
    write_report(read_report(folder).model_copy(update={"files": {}, "seal": None}), folder)
    assert changes_since_sealed(folder, []).report is True


def test_weights_are_never_sealed_anew(folder):
    (folder / "config.json").write_text("{}", "utf-8")
    done = CliRunner().invoke(app, ["seal", str(folder)])
    assert done.exit_code == 2 and "config.json changed since the card's numbers were measured" in done.output


def test_what_was_pushed_is_sealed(hub, api, folder, tmp_path):
    push(folder, Publish(repo=REPO), api=api, verify=False)
    there = tmp_path / "there"
    for name, content in hub.contents(REPO).items():
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).write_bytes(content)
    assert changes_since_sealed(there, result_files(there)) == (True, False, (), (), (), False)


def test_a_report_cannot_allow_code(folder):
    report = read_report(folder)
    loading = report.loading.model_copy(update={"trust_remote_code": True})
    write_report(report.model_copy(update={"reload": report.reload.model_copy(update={"loading": loading})}), folder)
    with pytest.raises(UsageError, match=r"comes with custom code.*--trust-remote-code"):
        prepare(folder, Publish(repo=REPO))
    with pytest.raises(UsageError, match=r"comes with custom code.*--trust-remote-code"):
        prepare(folder, Publish(repo=REPO, load_back=True), verify=False)


def test_a_text_that_is_no_secret_can_be_let_pass(folder):
    (folder / "note.txt").write_text("made in /home/anna/models")
    assert prepare(folder, Publish(repo=REPO, allow=("/home/anna",)), verify=False)


def test_a_user_may_be_called_here_as_on_the_hub(folder, monkeypatch):
    monkeypatch.setattr("hf_pe.hub.private_facts.getpass.getuser", lambda: REPO.partition("/")[0])
    assert prepare(folder, Publish(repo=REPO), verify=False)
    (folder / "note.txt").write_text("someone made it")
    with pytest.raises(UsageError, match="name of the user: someone"):
        prepare(folder, Publish(repo="another/small"), verify=False)


def test_weights_that_do_not_load_are_not_sent(folder, monkeypatch):
    from hf_pe.checkpoints.save import weight_hashes

    (folder / "model.safetensors").write_bytes(b"no weights")
    report = read_report(folder)
    reload = report.reload.model_copy(update={"sha256": weight_hashes(folder)})
    write_report(report.model_copy(update={"reload": reload}), folder)
    seal_result(folder)
    monkeypatch.setattr(HfApi, "whoami", no_network)
    with pytest.raises((RuntimeError, UsageError)):
        push(folder, Publish(repo=REPO))


def test_the_proof_finds_the_model_beside_folders_of_modules(folder):
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    seal_result(folder)
    assert prepare(folder, Publish(repo=REPO))[0].folder == folder


@pytest.mark.parametrize("licence", ["cc-by-nd-4.0", "cc-by-nc-nd-4.0"])
def test_a_licence_that_forbids_derivatives_stops_the_push(folder, licence):
    report = read_report(folder)
    write_report(report.model_copy(update={"base": report.base.model_copy(update={"license": licence})}), folder)
    with pytest.raises(UsageError, match="forbids derivatives"):
        prepare(folder, Publish(repo=REPO), verify=False)


def test_a_wrong_name_and_a_taken_tag(hub, api, folder):
    with pytest.raises(UsageError, match="expected NAME or USER/NAME"):
        push(folder, Publish(repo="a/b/c"), api=api)
    push(folder, Publish(repo=REPO, tag="v1"), api=api, verify=False)
    with pytest.raises(UsageError, match="tag v1 exists"):
        push(folder, Publish(repo=REPO, tag="v1"), api=api, verify=False)


def test_without_a_token_it_says_how_to_log_in(hub, folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_api.get_token", lambda: None)
    with pytest.raises(UsageError, match="hf auth login"):
        push(folder, Publish(repo=REPO), api=HfApi(endpoint=hub.url), verify=False)


def test_a_name_alone_belongs_to_the_user(hub, api, folder):
    push(folder, Publish(repo="small", private=False), api=api, verify=False)
    assert not hub.repos["someone/small"].private
    assert "someone/small" in files(hub)["README.md"].decode()


def test_the_result_pushes_itself(hub, api, result, monkeypatch):
    monkeypatch.setattr("hf_pe.hub.publish.HfApi", lambda: api)
    sent = result[0].push_to_hub(REPO)
    assert {s.branch for s in sent} == {"main", "nf4"}


def test_a_recipe_file_may_publish(hub, api, bert_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_pe.hub.publish.HfApi", lambda: api)
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    recipe = {
        "model": str(bert_folder), "base_model": "someone/tiny-bert", "license": "mit", "task": "embedding",
        "data": {"train": str(tmp_path / "texts.txt")}, "recipes": [{"recipe": "cast"}],
        "publish": {"repo": REPO, "tag": "v1"},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    where = ["--output", str(tmp_path / "out"), "--set", f"data.train={tmp_path}/texts.txt"]
    done = CliRunner().invoke(app, ["run", str(tmp_path / "recipe.yaml"), *where])
    assert done.exit_code == 0, done.output
    assert read_report(tmp_path / "out").command == "hf-pe run recipe.yaml --set data.train=texts.txt"
    assert hub.repos[REPO].tags["v1"]
    assert b"half-precision" in files(hub)["README.md"]
    assert b"the local model `tiny-bert`, which derives from [someone/tiny-bert]" in files(hub)["README.md"]
    assert b"base_model_relation" not in files(hub)["README.md"], "whether it is a copy or a fine-tune is not known"
    monkeypatch.setattr("hf_pe.hub.publish.HfApi", lambda: HfApi(endpoint=hub.url, token="hf_wrong"))
    refused = CliRunner().invoke(app, ["run", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "other")])
    assert refused.exit_code == 2
    assert not (tmp_path / "other").exists(), "the token is tried before any work"


def test_the_command_line(hub, api, result, monkeypatch):
    monkeypatch.setattr("hf_pe.hub.publish.HfApi", lambda: api)
    where = str(result[1])
    dry = CliRunner().invoke(app, ["push", where, REPO, "--dry-run"])
    assert dry.exit_code == 0
    assert "model.safetensors" in dry.output
    assert "## Before and after" in dry.output
    assert REPO not in hub.repos, "a dry run sends nothing"
    done = CliRunner().invoke(app, ["push", where, REPO, "--tag", "v1"])
    assert done.exit_code == 0, done.output
    assert "branch nf4, commit" in done.output
    monkeypatch.setattr("hf_pe.hub.outgoing.verify_reload", lambda *_: None)
    again = CliRunner().invoke(app, ["push", where, REPO])
    assert "nothing new" in again.output
    shown = CliRunner().invoke(app, ["diff", f"{where}/main", f"{where}/nf4"])
    assert shown.exit_code == 0
    assert "Weights on disk, MB" in shown.output


def test_hidden_files_never_go_out(folder):
    for name in (
        ".env",
        ".netrc",
        ".DS_Store",
        ".gitattributes",
        "1_Pooling/.env",
        ".git/config",
        ".cache/x",
        ".ssh/id_rsa",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("PASSWORD=hunter2" if name != ".gitattributes" else "*.safetensors filter=lfs")
    (outgoing,) = prepare(folder, Publish(repo=REPO), verify=False)
    assert [name for name in outgoing.files if "." in (name[0], name.split("/")[-1][0])] == [".gitattributes"]


def test_a_repository_that_is_public_already_is_pushed_to_by_the_users_word_only(hub, api, folder):
    api.create_repo(REPO, private=False)
    before = hub.snapshot()
    with pytest.raises(UsageError, match=r"someone/small is public.*--public"):
        push(folder, Publish(repo=REPO), api=api, verify=False)
    assert hub.snapshot() == before
    assert push(folder, Publish(repo=REPO, private=False), api=api, verify=False)[0].changed


def test_a_public_repository_and_a_taken_tag_are_refused_before_work(hub, api):
    check_access(Publish(repo=REPO, tag="v1"), api)  # a repository that is not made yet is none to refuse
    api.create_repo(REPO, private=False)
    with pytest.raises(UsageError, match=r"someone/small is public.*--public"):
        check_access(Publish(repo="small"), api)
    check_access(Publish(repo=REPO, private=False, tag="v1"), api)
    api.create_tag(REPO, tag="v1")
    with pytest.raises(UsageError, match="tag v1 exists"):
        check_access(Publish(repo=REPO, private=False, tag="v1"), api)


def test_a_folder_that_is_half_written_is_no_branch(result, tmp_path):
    folder = shutil.copytree(result[1], tmp_path / "small")
    shutil.copytree(folder / "main", folder / ".main.hf_pe-0123abcd")
    assert [each.branch for each in prepare(folder, Publish(repo=REPO), verify=False)] == ["nf4", "main"]
    (folder / "nf4").rename(folder / "four bits")
    with pytest.raises(UsageError, match="branch of the variant small/four bits: git allows no branch"):
        prepare(folder, Publish(repo=REPO), verify=False)


@pytest.mark.parametrize("settings", [{"branch": "bad name"}, {"tag": "v1..2"}])
def test_a_name_that_no_branch_or_tag_can_have_is_refused_before_anything(settings, monkeypatch, tmp_path):
    monkeypatch.setattr(HfApi, "whoami", no_network)
    for check in (prepare, push):
        with pytest.raises(UsageError, match=rf"publish.{next(iter(settings))}: git allows no branch or tag"):
            check(tmp_path, Publish(repo="small", **settings))
    with pytest.raises(UsageError, match="git allows no branch or tag"):
        check_access(Publish(repo=REPO, **settings))


def test_what_hf_pe_notes_for_itself_stays_here(folder):
    for name in (".hf_pe.json", ".README.md.hf_pe-0123abcd"):
        (folder / name).write_text("{}")
    (outgoing,) = prepare(folder, Publish(repo=REPO), verify=False)
    assert not [name for name in outgoing.files if "hf_pe" in name]
