"""Broken inputs, drawn by a seed: each damages one file that hf_pe reads, and names the command that reads it."""

import itertools
import json
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

Damage = Callable[[bytes, random.Random], bytes]
RUN = ("run {}.yaml --output out",)
ABSURD: tuple[Any, ...] = (
    0,
    -1,
    1,
    10**12,
    2**63,
    1e308,
    "many",
    "",
    None,
    [],
    {},
    [[]],
    True,
    3.5,
    "../../etc",
    float("nan"),
)
"""Values that stand in place of a right one."""


class BrokenInput(NamedTuple):
    """A file, how it is damaged, and the command that is given it."""

    number: int
    kind: str
    file: str
    label: str
    damage: Damage
    command: tuple[str, ...]


def _text(content: str) -> Damage:
    return lambda *_: content.encode()


ANY: dict[str, Damage] = {
    "empty": _text(""),
    "only spaces": _text(" \n\t \n"),
    "cut in the middle": lambda raw, draw: raw[: draw.randrange(1, max(len(raw), 2))],
    "random bytes": lambda raw, draw: draw.randbytes(500),
    "zeros": lambda raw, _: bytes(len(raw)),
    "some bytes changed": lambda raw, draw: _flipped(raw, draw),
    "UTF-16": lambda raw, _: raw.decode("utf-8", "replace").encode("utf-16"),
    "Git LFS pointer": _text("version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 123456\n"),
    "web page": _text("<!doctype html><html><title>404</title></html>"),
    "NUL bytes within": lambda raw, _: raw.replace(b"e", b"\0"),
}
JSON: dict[str, Damage] = {
    "not closed": lambda raw, _: raw.rstrip().rstrip(b"}]"),
    "a list": _text("[]"),
    "a list of numbers": _text("[1, 2, 3]"),
    "a string": _text('"text"'),
    "a number": _text("12"),
    "null": _text("null"),
    "an empty object": _text("{}"),
    "deep nesting": _text('{"a":' * 100_000 + "1" + "}" * 100_000),
    "deep lists": _text("[" * 100_000 + "]" * 100_000),
    "huge number": lambda raw, _: raw.replace(b": ", b": 1" + b"0" * 5000 + b', "x": ', 1),
    "lone surrogate": lambda raw, _: raw.replace(b'": "', b'": "\\ud800', 1),
}
YAML: dict[str, str] = {
    "bomb of aliases": "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)),
    "bomb of merged keys": "a0: &a0 {k: v}\n"
    + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 9)),
    "alias of itself": "model: &a [*a]\n",
    "unknown alias": "model: *nothing\n",
    "key twice": "model: encoder\nmodel: llama\n",
    "tabs": "model: encoder\nrecipes:\n\t- recipe: prune\n",
    "tag of Python": "model: !!python/object/apply:os.system ['true']\n",
    "unknown tag": "model: !thing x\n",
    "a list": "- model: encoder\n- recipes: []\n",
    "several documents": "model: encoder\n---\nmodel: llama\n",
    "only comments": "# nothing\n",
    "keys that are no strings": "1: 2\n? [a, b]\n: 3\nnull: 4\n",
    "flow that does not end": "model: {a: [b, c\n",
    "deep nesting": "[" * 5000 + "]" * 5000 + "\n",
    "huge number": "model: encoder\nseed: 1" + "0" * 5000 + "\n",
    "sexagesimal and infinity": "model: 1:30:00\nseed: .inf\n",
    "a date": "model: 2020-13-45\nseed: 2020-01-01\n",
    "a long line": "model: " + "x" * 1_000_000 + "\n",
    "control characters": "model: \x01\x02\n",
}
TABLES: dict[str, Damage] = {
    "header only": lambda raw, _: raw.splitlines(keepends=True)[0],
    "one column less in a row": lambda raw, _: raw.replace(b",calm", b"", 1),
    "one column more in a row": lambda raw, _: raw.replace(b",calm", b",calm,loud,,", 1),
    "quotes not closed": lambda raw, _: raw.replace(b"The small dog", b'"The small dog', 1),
    "column named twice": lambda raw, _: raw.replace(b"text,label", b"text,text", 1),
    "no such column": lambda raw, _: raw.replace(b"text,label", b"a,b", 1),
    "one label": lambda raw, _: raw.replace(b"loud", b"calm"),
    "foreign labels": lambda raw, _: raw.replace(b"loud", b"green"),
    "empty labels": lambda raw, _: raw.replace(b"loud", b""),
    "Latin-1": lambda raw, _: raw.replace(b"dog", "dög".encode("latin-1")),
    "one row": lambda raw, _: b"".join(raw.splitlines(keepends=True)[:2]),
    "a field of a megabyte": lambda raw, _: raw.replace(b"dog", b"d" * 1_000_000, 1),
}


def _flipped(raw: bytes, draw: random.Random) -> bytes:
    changed = bytearray(raw)
    for _ in range(max(len(raw) // 100, 3)):
        if changed:
            changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    if isinstance(value, (dict, list)) and len(path) < 6:
        for key in value if isinstance(value, dict) else range(min(len(value), 3)):
            yield from _paths(value[key], (*path, key))


def with_value(raw: bytes, path: tuple[Any, ...], value: Any) -> bytes:
    """Return a JSON text with another value at `path`; `...` removes it."""
    content = json.loads(raw)
    place = content
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return json.dumps(content, indent=1).encode()


def _any_value(raw: bytes, draw: random.Random) -> bytes:
    path = draw.choice(list(_paths(json.loads(raw))))
    return with_value(raw, path, draw.choice((..., *ABSURD)))


def _at(path: tuple[Any, ...], value: Any) -> Damage:
    return lambda raw, _: with_value(raw, path, value)


def _values(paths: dict[str, tuple[Any, ...]]) -> dict[str, Damage]:
    """Return damages that put each value at each place."""
    return {
        f"{name}: {'missing' if value is ... else json.dumps(value)[:30]}": _at(tuple(name.split("/")), value)
        for name, values in paths.items()
        for value in values
    }


CONFIG = _values({
    "model_type": (..., None, 3, "nothing", "", "../bert", "t5", []),
    "architectures": (..., None, [], ["Nothing"], "text", [3], 3),
    "hidden_size": (..., 0, -1, 10**12, 2**70, 1e308, "many", None, [], 3.5, 7),
    "num_hidden_layers": (..., 0, -1, 10**9, "many", None, [2], 1.5),
    "num_attention_heads": (..., 0, -4, 10**12, "many", None, 3),
    "intermediate_size": (0, -1, 10**13, "many", None, {}, 3.5),
    "vocab_size": (0, -1, 10**13, "many", None, [64], 1),
    "max_position_embeddings": (0, -1, 10**12, "many", None),
    "hidden_act": (None, "nothing", 3, ["gelu"]),
    "pad_token_id": (10**9, -5, "x", [0], 3.5),
    "dtype": ("float99", 3, [], "int8"),
    "id2label": ({}, [], "text", {"0": None}, {"x": "y"}, 3),
    "auto_map": ({"AutoConfig": "evil.Config"}, "text", {"AutoModel": "../../evil.Model"}, [3]),
    "quantization_config": ({}, [], "nf4", {"quant_method": "nothing"}, {"quant_method": "bitsandbytes", "load_in_4bit": "x"}),
    "layer_norm_eps": ("small", None, [], -1.0),
})  # fmt: skip


def _header(change: Callable[[dict[str, Any], list[str]], Any]) -> Damage:
    """Return the damage that changes the header of a safetensors file: given its entries and their names."""

    def damage(raw: bytes, _: random.Random) -> bytes:
        size = int.from_bytes(raw[:8], "little")
        entries = json.loads(raw[8 : 8 + size])
        names = [name for name in entries if name != "__metadata__"]
        changed = change(entries, names)
        header = json.dumps(entries if changed is None else changed).encode()
        return struct.pack("<Q", len(header)) + header + raw[8 + size :]

    return damage


def _entry(name: str, value: Any, which: int = 0) -> Damage:
    return _header(lambda entries, names: entries[names[which]].__setitem__(name, value))


SAFETENSORS: dict[str, Damage] = {
    "header of 0 bytes": lambda raw, _: bytes(8) + raw[8:],
    "header longer than the file": lambda raw, _: struct.pack("<Q", len(raw) * 2) + raw[8:],
    "header of 2**63 bytes": lambda raw, _: struct.pack("<Q", 2**63) + raw[8:],
    "header one byte short": lambda raw, _: struct.pack("<Q", int.from_bytes(raw[:8], "little") - 1) + raw[8:],
    "only a length": lambda raw, _: raw[:8],
    "three bytes": lambda raw, _: raw[:3],
    "cut in the header": lambda raw, _: raw[:100],
    "cut in the data": lambda raw, _: raw[: len(raw) // 2 + len(raw) // 4],
    "bytes after the data": lambda raw, _: raw + b"more",
    "header is a list": _header(lambda *_: []),
    "header without tensors": _header(lambda *_: {}),
    "overlapping offsets": _header(lambda e, n: e[n[0]].__setitem__("data_offsets", e[n[1]]["data_offsets"])),
    "offsets past the end": _entry("data_offsets", [0, 10**15]),
    "offsets backwards": _entry("data_offsets", [100, 0]),
    "negative offsets": _entry("data_offsets", [-8, 8]),
    "offsets of text": _entry("data_offsets", ["a", "b"]),
    "absurd shape": _entry("shape", [2**40, 2**40]),
    "negative shape": _entry("shape", [-1, 4]),
    "shape of text": _entry("shape", "4x4"),
    "no shape": _header(lambda e, n: e[n[0]].pop("shape") and None),
    "other shape of the same size": _header(lambda e, n: e[n[-1]].__setitem__("shape", [*e[n[-1]]["shape"][::-1], 1])),
    "unknown dtype": _entry("dtype", "F33"),
    "dtype of another size": _entry("dtype", "F64"),
    "whole numbers as weights": _entry("dtype", "I32"),
    "a tensor with another name": _header(lambda e, n: e.__setitem__("nothing", e.pop(n[0]))),
    "metadata of numbers": _header(lambda e, _: e.__setitem__("__metadata__", {"format": 3})),
    "no metadata": _header(lambda e, _: e.pop("__metadata__", None) and None),
    "metadata of another framework": _header(lambda e, _: e.__setitem__("__metadata__", {"format": "tf"})),
    "NaN as weights": lambda raw, _: raw[:-400] + struct.pack("<f", float("nan")) * 100,
}
INDEX: dict[str, Damage] = _values({
    "weight_map": (..., None, {}, [], "text", 3, {"x": 3}),
    "weight_map/model.norm.weight": (..., None, 3, [], "../encoder/model.safetensors", "/etc/passwd", "missing.safetensors", "", "."),
    "metadata": (..., None, [], "text", {"total_size": "x"}),
})  # fmt: skip
REPORT = _values({
    "format_version": (..., 0, 99, "one", None),
    "name": (..., None, 3, "", "../../x", "a\nb", "<script>"),
    "task": (..., "nothing", None, 3),
    "before": (..., None, [], {}),
    "after/parameters": (..., -1, "many", None, 1e308, 0),
    "stages": (..., None, {}, "text", [3]),
    "reload": (None, {}, [], "text"),
    "reload/snippet": (None, "import os\nos._exit(0)", "", 3),
    "reload/sha256": ({}, None, [], {"../x": "y"}, {"model.safetensors": 3}),
    "quality": (None, [], {"x": "y"}),
    "date": (3, None, "yesterday"),
    "base": (..., None, {}, "text"),
    "after/latency": ([{}], "text", [3]),
})  # fmt: skip
STAGE = _values({
    "identity": (..., 3, "other", None),
    "origin": (..., None, [], "text", {"x": 3}),
    "files": (None, [], {"../../x": "y"}, {"model.safetensors": 3}, {"missing": "a"}),
    "plan": (..., None, {}, [], "text"),
    "plan/kept": (None, [], "text", {"ffn": 3}),
    "report": (..., None, {}, [3]),
    "report/seconds": ("long", None, -1),
})  # fmt: skip
RECIPE = _values({
    "model": (..., "", None, 3, [], "nowhere", "/", ".", "data/text.txt", "data", "a/b/c", "package:nothing/x", "\0"),
    "task": (..., "nothing", 3, [], "", "text_classification", "image_classification"),
    "data": (..., None, [], 3, "nowhere.csv", ""),
    "data/train": (..., None, "", "nowhere.txt", [], 3, "encoder", "encoder/config.json", ["data/text.txt", 3], "builtin:nothing"),
    "data/max_length": (0, -1, 10**12, "long", 1.5, 2**70),
    "data/text": ("nothing", "", 3, []),
    "recipes": (..., None, [], {}, "prune", [3], [[]], [{}], [{"recipe": "nothing"}], [{"recipe": 3}]),
    "seed": (-1, 2**70, "x", 1.5, None),
    "variants": ([], {"../x": {"recipe": "quantize"}}, {"a": {"recipe": "prune"}}, {"a": 3}, "nf4", {"": {"recipe": "quantize"}}),
    "output": ("", 3, "/", "encoder", "\0"),
    "format_version": (99, 0, "x", None),
    "publish": ({"repo": "a/b/c"}, {"repo": 3}, "me/x", {"repo": "me/x", "template": "nowhere"}),
    "unknown": (1,),
})  # fmt: skip
RECIPE |= {
    f"recipes: {json.dumps(step)[:60]}": _at(("recipes",), [step])
    for step in (
        {"recipe": "prune"}, {"recipe": "prune", "keep": {}}, {"recipe": "prune", "keep": {"ffn": 0}},
        {"recipe": "prune", "keep": {"ffn": -3}}, {"recipe": "prune", "keep": {"ffn": 10**12}},
        {"recipe": "prune", "keep": {"ffn": "half"}}, {"recipe": "prune", "keep": {"nothing": 0.5}},
        {"recipe": "prune", "keep": {"layers": [0, 0]}}, {"recipe": "prune", "keep": {"layers": [99]}},
        {"recipe": "prune", "keep": {"layers": []}}, {"recipe": "prune", "keep": [0.5]},
        {"recipe": "distil", "steps": 0}, {"recipe": "distil", "steps": -1}, {"recipe": "distil", "steps": "x"},
        {"recipe": "distil", "steps": 1, "learning_rate": 1e308}, {"recipe": "distil", "steps": 1, "learning_rate": -1},
        {"recipe": "distil", "steps": 1, "batch_size": 0}, {"recipe": "distil", "steps": 1, "losses": {}},
        {"recipe": "distil", "steps": 1, "losses": {"nothing": 1}}, {"recipe": "distil", "steps": 1, "teachers": [{"model": "nowhere"}]},
        {"recipe": "quantize", "method": "int1"}, {"recipe": "cast", "dtype": "float1"}, {"recipe": "swap"},
        {"recipe": "swap", "backbone": "nothing"},
    )
}  # fmt: skip
TOKENIZER = _values({
    "model": (..., None, {}, [], {"type": "Nothing"}),
    "model/vocab": (..., None, {}, [], {"a": -1}, {"a": 10**12}, {"a": "b"}),
    "added_tokens": (None, "text", [{}], [{"id": 10**10, "content": "x"}]),
    "pre_tokenizer": (None, {"type": "Nothing"}, 3),
    "post_processor": ({"type": "Nothing"}, []),
    "version": (3, "99"),
})  # fmt: skip
TOKENIZER_CONFIG = _values({
    "tokenizer_class": (..., "Nothing", None, 3, "BertTokenizer", "../x"),
    "pad_token": (..., None, 3, [], {"content": 3}),
    "model_max_length": (0, -1, "long", None, 1e40),
    "auto_map": ({"AutoTokenizer": ["evil.T", None]}, 3),
    "chat_template": ("{% for x in %}", 3, "{{ ''.__class__ }}"),
})  # fmt: skip
ADAPTER = _values({
    "peft_type": (..., "NOTHING", None, 3),
    "r": (0, -1, 10**9, "x", None, 3),
    "target_modules": (..., None, [], ["nothing"], 3, "("),
    "base_model_name_or_path": (..., None, 3, "nowhere"),
    "task_type": ("NOTHING", None, 3),
    "lora_alpha": ("x", None, 1e308),
    "auto_mapping": ({"base_model_class": "x", "parent_library": "evil"}, 3),
})  # fmt: skip
PROCESSOR = _values({
    "size": (None, {}, {"height": 0, "width": 0}, {"height": -1, "width": 3}, {"height": "x", "width": 3}, 10**6, []),
    "image_mean": (None, [], "x", [1], [0, 0, "x"]),
    "image_std": ([0, 0, 0], None, [1]),
    "image_processor_type": (..., "Nothing", None, 3),
    "resample": (99, "x", -1),
    "do_resize": ("x", False),
})  # fmt: skip
MARKER = _values({
    "kind": ("nothing", 3), "output": (None, 3, "/etc"), "job": (None, [], {"model": 3}), "pid": ("x", -1), "format_version": (99,),
})  # fmt: skip
CARDS: dict[str, str] = {
    "front matter not closed": "---\nlicense: mit\n\n# Text\n",
    "front matter of a list": "---\n- a\n- b\n---\n",
    "front matter of text": "---\ntext\n---\n",
    "front matter with tabs": "---\nlicense:\tmit\n\ttags: x\n---\n",
    "front matter with a bomb": "---\n" + YAML["bomb of aliases"] + "---\n",
    "front matter with a tag of Python": "---\n" + YAML["tag of Python"] + "---\n",
    "front matter of wrong types": "---\nlicense: [1, {a: b}]\nlanguage: {a: 1}\ntags: 3\nmodel-index: text\nbase_model: [[]]\n---\n",
    "front matter with keys twice": "---\nlicense: mit\nlicense: apache-2.0\n---\n",
    "front matter with dates": "---\nlicense: 2020-01-01\nlanguage: no\ntags: [1.10, ~]\n---\n",
    "marks not closed": "<!-- hf_pe:begin summary -->\n",
    "marks crossed": "<!-- hf_pe:begin a --><!-- hf_pe:begin b --><!-- hf_pe:end a --><!-- hf_pe:end b -->\n",
    "template in text": "---\nlicense: mit\n---\n{{ 7 * 7 }}{% for x in y %}\n",
}
GGUF: dict[str, Damage] = {
    "other magic": lambda raw, _: b"GGML" + raw[4:],
    "version 0": lambda raw, _: raw[:4] + bytes(4) + raw[8:],
    "version 99": lambda raw, _: raw[:4] + struct.pack("<I", 99) + raw[8:],
    "2**60 tensors": lambda raw, _: raw[:8] + struct.pack("<Q", 2**60) + raw[16:],
    "no tensors": lambda raw, _: raw[:8] + bytes(8) + raw[16:],
    "2**60 keys": lambda raw, _: raw[:16] + struct.pack("<Q", 2**60) + raw[24:],
    "no keys": lambda raw, _: raw[:16] + bytes(8) + raw[24:],
    "cut in the keys": lambda raw, _: raw[:80],
    "cut in the data": lambda raw, _: raw[: len(raw) * 3 // 4],
    "unknown architecture": lambda raw, _: raw.replace(b"llama", b"nolla"),
    "absurd length of a text": lambda raw, _: raw[:24] + struct.pack("<Q", 2**62) + raw[32:],
    "only the magic": lambda raw, _: raw[:4],
}
IMAGES = {
    "text": _text("this is no image"),
    "cut": lambda raw, _: raw[:40],
    "absurd size": lambda raw, _: raw[:16] + b"\xff\xff\xff\xff" * 2 + raw[24:],
}
SOUNDS = {"text": _text("this is no recording"), "cut": lambda raw, _: raw[:30], "rate of 0": lambda raw, _: raw[:24] + bytes(4) + raw[28:],
          "no channels": lambda raw, _: raw[:22] + bytes(2) + raw[24:], "silence of no length": lambda raw, _: raw[:44]}  # fmt: skip


def _bytes(texts: dict[str, str]) -> dict[str, Damage]:
    return {name: _text(text) for name, text in texts.items()}


def _drawn(count: int) -> dict[str, Damage]:
    """Return that many damages that each put an absurd value somewhere."""
    return {f"an absurd value, draw {number}": _any_value for number in range(count)}


COMMANDS = {
    "llama": ("cut llama --keep ffn=0.5 --output out", "quantize llama --output out", "export llama --output out",
              "run causal.yaml --output out", "measure llama", "inspect llama"),
    "encoder": ("run texts.yaml --output out", "quantize encoder --output out", "measure encoder", "inspect encoder", "plan texts.yaml"),
    "result": ("push result someone/small --dry-run", "card result", "diff result result"),
}  # fmt: skip
TARGETS: list[tuple[str, str, tuple[str, ...], dict[str, Damage]]] = [
    ("safetensors", "encoder/model.safetensors", COMMANDS["encoder"][:3], SAFETENSORS | ANY),
    ("safetensors of several", "llama/model-00002-of-*.safetensors", COMMANDS["llama"][:5], SAFETENSORS | ANY),
    ("config", "encoder/config.json", COMMANDS["encoder"], CONFIG | JSON | ANY | _drawn(20)),
    ("config of a causal model", "llama/config.json", COMMANDS["llama"], CONFIG | JSON | ANY | _drawn(20)),
    ("index", "llama/model.safetensors.index.json", COMMANDS["llama"][:5], INDEX | JSON | ANY),
    ("recipe", "texts.yaml", ("run texts.yaml --output out", "plan texts.yaml"), _bytes(YAML) | RECIPE | ANY | _drawn(20)),
    ("report", "result/report.json", COMMANDS["result"], REPORT | JSON | ANY | _drawn(20)),
    ("plan of a result", "result/plan.json", COMMANDS["result"][:1], JSON | ANY),
    ("card of a result", "result/README.md", COMMANDS["result"][:2], _bytes(CARDS) | ANY),
    ("card of the original", "encoder/README.md", ("run texts.yaml --output out",), _bytes(CARDS) | ANY),
    ("note of a stage", ".stopped.hf_pe-*/*/stage.json", ("run stopped.yaml --output stopped --resume",), STAGE | JSON | ANY | _drawn(10)),
    ("weights of a stage", ".stopped.hf_pe-*/*/model.safetensors", ("run stopped.yaml --output stopped --resume",), SAFETENSORS),
    ("marker of a run", ".stopped.hf_pe-*/hf_pe_work.json", ("run stopped.yaml --output stopped --resume",), MARKER | JSON | ANY),
    ("tokenizer", "encoder/tokenizer.json", COMMANDS["encoder"][:1], TOKENIZER | JSON | ANY),
    ("settings of a tokenizer", "encoder/tokenizer_config.json", COMMANDS["encoder"][:1], TOKENIZER_CONFIG | JSON | ANY),
    ("adapter", "adapter/adapter_config.json", ("run adapter.yaml --output out", "dequantize adapter --output out"), ADAPTER | JSON | ANY),
    ("weights of an adapter", "adapter/adapter_model.safetensors", ("run adapter.yaml --output out", "dequantize adapter --output out"), SAFETENSORS | ANY),
    ("processor", "vit/p*processor_config.json", ("run images.yaml --output out",), PROCESSOR | JSON | ANY),
    ("generation settings", "llama/generation_config.json", COMMANDS["llama"][:2], JSON | ANY | _drawn(5)),
    ("text", "data/text.txt", ("run texts.yaml --output out",), ANY),
    ("CSV", "data/rows.csv", ("run csv.yaml --output out",), TABLES | ANY),
    ("JSON data", "data/rows.json", ("run json.yaml --output out",), JSON | ANY | _drawn(5)),
    ("JSON Lines", "data/rows.jsonl", ("run jsonl.yaml --output out",), JSON | ANY),
    ("Parquet", "data/rows.parquet", ("run parquet.yaml --output out",), ANY),
    ("image", "data/images/calm/0.png", ("run images.yaml --output out",), IMAGES | ANY),
    ("recording", "data/audio/calm/0.wav", ("run audio.yaml --output out",), SOUNDS | ANY),
    ("GGUF", "model.gguf", ("measure model.gguf", "quantize model.gguf --output out", "inspect model.gguf"), GGUF | ANY),
]  # fmt: skip
"""Kind, file, the commands that read it, and the damages."""


def broken_inputs(count: int, seed: int = 0) -> list[BrokenInput]:
    """Return `count` different broken inputs, the same for a seed, of all kinds in turn; each kind's order is drawn."""
    draw = random.Random(seed)
    kinds = []
    for kind, file, commands, damages in TARGETS:
        every = [(label, damage) for label, damage in damages.items()]
        draw.shuffle(every)
        turns = itertools.cycle(draw.sample(commands, len(commands)))
        kinds.append(
            [(kind, file, label, damage, command) for (label, damage), command in zip(every, turns, strict=False)]
        )
    turns_of_all = (each for row in itertools.zip_longest(*kinds) for each in row if each)
    chosen = itertools.islice(turns_of_all, count)
    return [
        BrokenInput(n, kind, file, label, damage, tuple(c.split()))
        for n, (kind, file, label, damage, c) in enumerate(chosen)
    ]


def damage(place: Path, broken: BrokenInput) -> None:
    """Damage the file below `place`."""
    files = sorted(place.glob(broken.file))
    assert files, f"there is no {broken.file}"
    file = files[0]
    file.write_bytes(broken.damage(file.read_bytes(), random.Random(broken.number)))
