"""Nothing that a report holds can break out of its place in the card."""

import itertools
import re

import pytest
from markdown_it import MarkdownIt
from pydantic import ValidationError

from hf_pe.data_facts import DataFacts, RowCounts
from hf_pe.files.front_matter import read_front_matter
from hf_pe.hub.base_card import model_card
from hf_pe.hub.card import render_card, write_card
from hf_pe.hub.markdown import code, escape, fenced, link, quoted, table_row
from hf_pe.hub.merge import BLOCK, merge_card, split
from hf_pe.hub.pictures import draw_losses
from hf_pe.plans import Plan
from hf_pe.report import MetricChange, Report, SliceChange
from hf_pe.training_curve import Evaluation, TrainingCurve
from tests.helpers import shared
from tests.hub.test_card import measurement, report

HOSTILE = [
    "x\n\n# Heading\n\nHeading\n===\n\n***\n\n| a | b |\n| - | - |\n| c | d |\n\n    code\n\n<script>alert(1)</script>\n",
    "x](https://a.example) [y](https://a.example) ![z](https://a.example/z.png) <https://a.example> <b>x</b>",
    "x\n```\n~~~\n---\n...\nkey: value\n```\n# Heading\n<b>",
    "-->\n<!-- hf_pe:end summary -->\n<!-- hf_pe:off limits -->\n<!-- hf_pe:front {} -->\n`<!-- hf_pe:off stages -->` `x <!-- hf_pe:off facts -->`",
    "a | b ` c `` d ` e | \\| f \\",
    "# x", "- x", "+ x", "> x", "1. x", "***", "---", "===", "    x", "| x |", ":-: |", "&lt;b&gt; &#35; x",
    "[x]: https://a.example", "\u2028# x\x00\x0b\x85# y\r# z", '"); import os; x = ("', "*x* _x_ `x` ~~x~~ $x^{2$",
]  # fmt: skip
CURVE = TrainingCurve(
    metric="spearman",
    rows=40,
    evaluations=(
        Evaluation(step=0, seconds=0.0, value=None),
        Evaluation(step=5, seconds=2.0, value=0.8),
        Evaluation(step=9, seconds=4.0, value=0.7),
    ),
    kept_step=5,
    last_step=9,
    evaluation_seconds=0.1,
)
KINDS = ("heading_open", "tr_open", "td_open", "th_open", "fence", "code_block", "html_block", "hr")


def structure(card):
    """What a renderer would make of a card: headings, tables, blocks of code, HTML, and how many links and images.

    Code inside a quotation is what others wrote: it may have any number of blocks, and ends with the quotation."""
    front, body, _ = split(card)
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(body)
    inner = [child.type for token in tokens for child in token.children or ()]
    return {
        "blocks": [(t.type, t.tag) for t in tokens if t.type in KINDS and not (t.type == "fence" and t.level)],
        "marks": [match[1] for match in BLOCK.finditer(body)],
        "counts": {kind: inner.count(kind) for kind in ("link_open", "image", "html_inline")},
        "keys": sorted(read_front_matter(front)),
    }


def full_report():
    """A report with every part of a card."""
    part = SliceChange(name="label_a", examples=30, before=0.9, after=0.7, low=-0.3, high=-0.1)
    change = MetricChange(metric="spearman", examples=60, before=0.9, after=0.85, low=-0.1, high=-0.1, slices=(part,))
    base = report()
    stage = base.stages[0].model_copy(update={"losses": ((1, 2.0), (2, 1.0)), "curve": CURVE, "layer_bits": (32.0,)})
    quantization = Plan(
        recipe="quantize", title="NF4", parameters=1, parameters_without_embeddings=1, weight_bytes=1, exact=True,
        sensitivity={"layers.0.up": 0.1}, modules_to_not_convert=("layers.0.up",), notes=("a note",), references=("https://x.org/1",),
    )  # fmt: skip
    counts = RowCounts(read=9, empty=1, duplicate=1, over_limit=1, overlapping=1, truncated=1)
    said = {"license": "other", "license_name": "own", "license_link": "terms", "revision": "abc", "tags": ("a",)}
    said |= {"intended_use": "For search.", "limits": "- Not for law.", "citation": "@misc{x,\n}"}
    return report(
        stages=(stage, stage.model_copy(update={"plan": quantization, "layer_bits": (5.0,)})),
        base=base.base.model_copy(update=said),
        changes=(change,),
        variants={"main": measurement(0.5), "nf4": measurement(0.25)},
        data=DataFacts(
            train=("a.csv",), eval=("b/c",), train_rows=10, eval_rows=60, fingerprint="abc", licenses={"b/c": "mit"},
            counts=counts,
        ),
        warnings=("A warning.",),
        unread_parts=("cls (5 tensors)",),
    )  # fmt: skip


def texts(value, path=()):
    """The places of all strings in plain data, those of keys too."""
    if isinstance(value, str):
        yield (*path, None)
    if isinstance(value, list):
        yield from itertools.chain(*(texts(each, (*path, i)) for i, each in enumerate(value)))
    if isinstance(value, dict):
        yield from itertools.chain(*(texts(each, (*path, key)) for key, each in value.items()))


def exchanged(value, path, text):
    """Plain data with `text` at one place; a path that ends in a key of its own exchanges the key."""
    if path[0] is None:
        return text
    pairs = list(enumerate(value)) if isinstance(value, list) else list(value.items())
    made = [(key, exchanged(each, path[1:], text) if key == path[0] else each) for key, each in pairs]
    return [each for _, each in made] if isinstance(value, list) else dict(made)


def free_keys(data):
    """Names that a report has as keys: of metrics, variants, layers, packages, sources."""
    yield from ((part, "quality", name) for part in ("before", "after") for name in data[part]["quality"])
    yield from (("variants", name) for name in data["variants"])
    yield from (("versions", name) for name in data["versions"])
    yield from (("data", "licenses", name) for name in data["data"]["licenses"])
    yield ("stages", 1, "plan", "sensitivity", "layers.0.up")


def renamed(value, path, name):
    """Plain data with another name for one key."""
    if len(path) == 1:
        return {name if key == path[0] else key: each for key, each in value.items()}
    pairs = list(enumerate(value)) if isinstance(value, list) else list(value.items())
    made = [(key, renamed(each, path[1:], name) if key == path[0] else each) for key, each in pairs]
    return [each for _, each in made] if isinstance(value, list) else dict(made)


DATA = full_report().model_dump(mode="json")
PLACES = [*((exchanged, path) for path in texts(DATA)), *((renamed, path) for path in free_keys(DATA))]


def changed_structure(change, path, text):
    """The card's structure with a text at a place, or None where the report is refused."""
    try:
        changed = Report.model_validate(change(DATA, path, text))
    except ValidationError:
        return None
    return structure(render_card(changed))


@pytest.mark.parametrize("number", range(len(PLACES)), ids=[".".join(map(str, path)) for _, path in PLACES])
def test_no_field_changes_the_structure_of_the_card(number):
    change, path = PLACES[number]
    assert changed_structure(change, path, "\n".join(HOSTILE[:5])) == changed_structure(change, path, "a word")


def refused(path, text):
    try:
        Report.model_validate(exchanged(DATA, path, text))
    except ValidationError:
        return True
    return False


@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
def test_a_report_full_of_hostile_texts_has_the_structure_of_a_harmless_one(hostile):
    free = [path for change, path in PLACES if change is exchanged and not refused(path, hostile)]
    assert len(free) > 40

    def filled(text):
        data = DATA
        for path in free:
            data = exchanged(data, path, text)
        card = render_card(Report.model_validate(data), [("losses.png", "Losses")])
        assert merge_card(card, card) == card
        return structure(card)

    assert filled(hostile) == filled("a word")


@pytest.mark.parametrize("ending", ["", "}\n```\n## Limits\n# x\n<b>y</b>\n"])
def test_the_card_of_the_original_adds_nothing_of_its_own(ending, tmp_path):
    text = shared("cases/base_cards/injecting.md").read_text("utf-8")
    (tmp_path / "README.md").write_text(text.removesuffix("```\n") + ending)
    card = model_card(tmp_path, "")
    said = {"license": card.string("license"), "license_name": card.string("license_name")}
    said |= {"limits": card.sections("limits"), "citation": card.citation()}
    harmless = {key: "other" if key == "license" else "a word" if value else None for key, value in said.items()}
    assert bool(said["citation"]) == bool(ending)
    made, expected = (
        structure(render_card(report(base=report().base.model_copy(update=facts)))) for facts in (said, harmless)
    )
    assert made == expected


def test_names_are_shown_as_they_are():
    for name in ("all_minilm_l6_v2", "someone/large-v1.5", "C#", "5 x 3", "-0.5", "1.5 MB (2 %)", "x!", "e.g. 3."):
        assert escape(name) == name
    assert escape("label `a_b*` of 7.") == "label `a_b*` of 7."
    assert code("layers.0.mlp_up[1]*") == "`layers.0.mlp_up[1]*`"
    assert escape("_x_ *y* #1 a|b <i> AT&T &amp;") == r"\_x\_ \*y\* \#1 a\|b &lt;i> AT&T &amp;amp;"
    assert code("a|b") == r"a\|b" and code("a`b") == r"a\`b"
    assert table_row(["a|b", code("c")]) == r"| a\|b | `c` |"


def test_every_text_reads_as_it_was_written():
    """What a renderer shows of an escaped text is the text, but for white space and code spans."""
    for text in HOSTILE:
        tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(f"{escape(text)}\n")
        shown = "".join(child.content for token in tokens for child in token.children or ())
        plain = re.sub(r"[\s\x00-\x1f\x85\ufffd`]", "", text)
        assert re.sub(r"[\s\ufffd`]", "", shown) == plain
        assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"]


def test_a_block_of_code_ends_where_it_should():
    assert fenced("x = 1\n", "python") == "```python\nx = 1\n```"
    text = "```\n# no heading\n````"
    tokens = MarkdownIt().parse(fenced(text))
    assert [(token.type, token.content) for token in tokens] == [("fence", text + "\n")]


def test_a_table_in_a_quotation_becomes_readable_rows():
    table = [
        "Scores:", "", "| Task | **Score** | a\\|b |", "|:---|---:|---|", "| SST-2 | 91.3 | [x](https://a.example) |",
        "| <b> | | |", "| | 7 |", "No row.", "", "Size | MB", "--- | ---", "small | 9", "", "no | rows", "- | -",
    ]  # fmt: skip
    assert quoted("\n".join(table)).splitlines() == [
        "> Scores:", ">", "> - Task: SST-2; Score: 91.3; a\\|b: x (https://a.example)", "> - Task: &lt;b>", "> - Score: 7",
        "> No row.", ">", "> - Size: small; MB: 9", ">",
        r"> no \| rows", r"> - \| -",
    ]  # fmt: skip
    assert quoted("```\n| a |\n|---|\n| b |\n```").splitlines()[1:4] == ["> | a |", "> |---|", "> | b |"]
    assert quoted("| a |\n---").splitlines() == [r"> \| a \|", r"> \---"], "a heading, no table"


def test_a_quotation_keeps_paragraphs_and_lists():
    text = "**Bias:** see [here](https://a.example).\n\n- one_two `x`\n  - two\n1. three\n# no heading\n---\n<b>"
    assert quoted(text).splitlines() == [
        "> Bias: see here (https://a.example).", ">", "> - one_two `x`", ">   - two", "> 1. three", r"> \# no heading",
        r"> \---", "> &lt;b>",
    ]  # fmt: skip


def test_a_quotation_keeps_blocks_of_code():
    text = "Use it so:\n```python\n# a comment\nx = a[0] * 2\n```\nand no more.\n~~~\nnever closed <b>"
    assert quoted(text).splitlines() == [
        "> Use it so:", "> ```", "> # a comment", "> x = a[0] * 2", "> ```", "> and no more.", "> ```",
        "> never closed <b>", "> ```",
    ]  # fmt: skip


def test_only_addresses_of_the_web_become_links():
    assert link("a_b", "https://x.org/a_b?c=1") == "[a_b](https://x.org/a_b?c=1)"
    assert link("a", "javascript:alert(1)") == link("a", "/etc") == "a"
    assert link("a]", "https://x.org/) [b](https://y") == r"[a\]](https://x.org/%29%20%5Bb%5D%28https://y)"


def test_pictures_show_names_as_text(tmp_path):
    name = "$x^{ \n" + "long " * 100
    measured = measurement(quality={name: 0.9})
    stage = full_report().stages[0].model_copy(update={"quality": {name: 0.8}})
    plan = stage.plan.model_copy(update={"recipe": name})
    stage = stage.model_copy(update={"plan": plan})
    write_card(report(metric=name, stages=(stage,), before=measured, after=measured), tmp_path)
    assert {"quality_size.png", "kept_units.png", "losses.png", "quality_time.png"} <= {
        p.name for p in tmp_path.iterdir()
    }


@pytest.mark.parametrize("losses", [((1, 0.0), (2, 0.0)), ((1, 0.5), (2, 0.0)), ((1, 0.5), (2, 0.25))])
def test_losses_of_zero_are_drawn_too(tmp_path, losses):
    stage = full_report().stages[0].model_copy(update={"losses": losses})
    assert draw_losses(report(stages=(stage,)), tmp_path / "losses.png")
