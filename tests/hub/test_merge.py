import pytest
import yaml

from hf_pe.errors import UsageError
from hf_pe.hub.card import render_card, write_card
from hf_pe.hub.merge import merge_card, split
from tests.helpers import shared
from tests.hub.test_card import measurement, report


def test_a_card_merged_into_itself_is_itself():
    card = render_card(report())
    assert merge_card(card, card) == card
    assert merge_card(card, "") == card


def test_only_marked_blocks_are_exchanged():
    old = render_card(report()).replace("<!-- hf_pe:begin limits -->", "My own words.\n\n<!-- hf_pe:begin limits -->")
    old = old.replace("## Before and after", "## Scribbled inside a block")
    new = merge_card(render_card(report(date="2031-05-05")), old)
    assert "My own words.\n\n<!-- hf_pe:begin limits -->" in new
    assert "2031-05-05" in new
    assert "2026-01-01" not in new
    assert "Scribbled" not in new


def test_a_block_can_be_kept_out_and_a_new_one_comes_in_its_place():
    old = render_card(report())
    start, end = old.index("<!-- hf_pe:begin stages -->"), old.index("<!-- hf_pe:begin limits -->")
    off = old[:start] + "<!-- hf_pe:off stages -->\n" + old[end:]
    assert "## What was done" not in merge_card(old, off)
    gone = old[:start] + old[end:]
    back = merge_card(old, gone)
    assert (
        back.index("## How to load it") < back.index("## What was done") < back.index("## Regressions and limitations")
    )


def test_a_card_that_was_all_by_hand_is_kept_whole():
    hand = "---\nlicense: mit\n---\n\n# Mine\n\nAll by hand.\n"
    merged = merge_card(render_card(report()), hand)
    assert "# Mine\n\nAll by hand." in merged
    assert merged.index("All by hand.") < merged.index("## Before and after")
    assert merge_card(merged, merged) == merged
    assert merge_card(render_card(report()), merged) == merged


def front_of(card):
    return yaml.safe_load(split(card)[0])


def changed_front(card, **changes):
    front, body = front_of(card), split(card)[1]
    memory = card[card.rindex("<!-- hf_pe:front") :]
    return f"---\n{yaml.safe_dump({**front, **changes}, sort_keys=False)}---\n\n{body}{memory}"


def test_front_matter_is_merged_three_ways():
    old = render_card(report())
    front = front_of(old)
    edited = changed_front(old, license="other", new_version="a/b", tags=[*front["tags"], "mine"])
    new = render_card(report(after=measurement(0.4, quality={"spearman": 0.7})))
    merged = front_of(merge_card(new, edited))
    assert merged["license"] == "other", "the user changed it"
    assert merged["new_version"] == "a/b", "the user added it"
    assert "mine" in merged["tags"]
    assert merged["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.7, "ours is new"
    again = front_of(merge_card(render_card(report()), merge_card(new, edited)))
    assert (again["license"], again["new_version"]) == ("other", "a/b"), "it survives the push after, too"


def test_a_tag_that_the_user_removed_stays_away():
    old = render_card(report())
    edited = changed_front(old, tags=["hf_pe"])
    assert front_of(merge_card(render_card(report(date="2031-01-01")), edited))["tags"] == ["hf_pe"]


def test_results_that_others_added_stay():
    old = render_card(report())
    index = front_of(old)["model-index"]
    other = {
        "task": {"type": "retrieval"},
        "dataset": {"name": "x", "type": "x"},
        "metrics": [{"type": "ndcg", "value": 1}],
    }
    edited = changed_front(old, **{"model-index": [{**index[0], "results": [*index[0]["results"], other]}]})
    new = render_card(report(after=measurement(0.4, quality={"spearman": 0.7})))
    results = front_of(merge_card(new, edited))["model-index"][0]["results"]
    assert other in results
    assert len(results) == len(index[0]["results"]) + 1


def remote(case):
    return shared(f"cases/remote_cards/{case}.md").read_bytes().decode("utf-8")


def test_keys_of_others_keep_their_lines():
    old = remote("yaml_scalars")
    merged = merge_card(render_card(report()), old)
    lines = old.partition("tags:")[0].removeprefix("---\n")
    assert merged.startswith(f"---\n{lines}"), "comments, and words that YAML would read as values, stay"
    assert "\n- on\n" in split(merged)[0], "beside our tags"
    assert {"hf_pe", "pruned"} < set(yaml.load(split(merged)[0], yaml.BaseLoader)["tags"])
    assert merged.count("\n---\n") == 1
    assert "My own words." in merged
    assert merge_card(render_card(report()), merged) == merged


@pytest.mark.parametrize("case", ["bom", "dots_end"])
def test_a_byte_order_mark_and_another_end_mark_are_front_matter(case):
    merged = merge_card(render_card(report()), remote(case))
    assert merged.startswith("---\nlicense: mit\n")
    assert merged.count("license: mit") == 1 and "\n...\n" not in merged and "\ufeff" not in merged
    assert "\n\nMy own words.\n" in merged


def test_comments_and_lines_stay_where_a_value_of_ours_changes():
    mine = "# about all\nfirst: 1.10\nmetrics:\n- spearmanr # gone\n# about last\n\nlast: >\n  a\n   b\n"
    old = render_card(report()).replace("---\n", f"---\n{mine}", 1).replace("\nmetrics:\n- spearmanr\npipe", "\npipe")
    new = report(after=measurement(0.4, quality={"accuracy": 0.7}))
    front = split(merge_card(render_card(new), old))[0]
    assert front.startswith(mine.replace("- spearmanr # gone", "- accuracy"))


def test_results_of_others_keep_their_numbers_as_written():
    old = render_card(report())
    added = (
        "  - task:\n      type: retrieval\n    dataset:\n      name: x\n      type: x\n    metrics:\n    - type: ndcg\n"
        "      value: 1.10\n---\n"
    )
    new = report(after=measurement(0.4, quality={"spearman": 0.7}))
    assert "      value: 1.10\n" in merge_card(render_card(new), old.replace("\n---\n", f"\n{added}", 1))


def test_windows_lines_stay():
    old = "---\r\nlicense: mit # mine\r\n---\r\nMy own words.\r\n"
    merged = merge_card(render_card(report()), old)
    assert merged.startswith("---\r\nlicense: mit # mine\r\n") and merged.count("\n") == merged.count("\r\n")


@pytest.mark.parametrize("mostly", ["\n", "\r\n"])
def test_each_line_keeps_its_own_ending(mostly):
    rare = "\r\n" if mostly == "\n" else "\n"
    front = ["---", "license: mit # mine", "tags:", "- on", "---"]
    lines = [*front, "", "My own words.", "", "Some more of them.", "The end."]
    old = "".join(line + (rare if line in ("tags:", "My own words.") else mostly) for line in lines)
    merged = merge_card(render_card(report()), old)
    for line in ("license: mit # mine", "- on", "Some more of them.", "The end."):
        assert f"\n{line}{mostly}" in merged
    for line in ("tags:", "My own words."):
        assert f"\n{line}{rare}" in merged
    assert merged.count("\r\n") == (2 if mostly == "\n" else merged.count("\n") - 2), "new lines are as most are"
    assert merge_card(render_card(report()), merged) == merged


@pytest.mark.parametrize(("above", "line"), [("", 3), ("\ufeff\n\r\n", 5)])
def test_a_fault_in_the_front_matter_has_its_line_in_the_card(above, line):
    with pytest.raises(UsageError, match=rf"mapping values are not allowed here.*line {line}, column 9"):
        merge_card(render_card(report()), f"{above}---\nlicense: mit\ntitle: a: b\n---\n")


@pytest.mark.parametrize(
    "old",
    [
        "---\ntitle: a: b\n---\n", "---\n- a\n---\n", "---\n{license: mit}\n---\n", "---\na: 1\na: 2\n---\n",
        "---\ntags: &x [a]\nmine: *x\n---\n", "---\na: 1\n---\n<!-- hf_pe:front {broken} -->\n",
    ],
)  # fmt: skip
def test_a_card_that_cannot_be_read_is_refused(old):
    with pytest.raises(UsageError, match=r"the card there is a card that cannot be merged: .* Correct the card"):
        merge_card(render_card(report()), old, "the card there")


def test_a_local_card_that_cannot_be_read_is_left_alone(tmp_path):
    for content in (b"---\ntitle: a: b\n---\n", "é".encode("latin-1")):
        (tmp_path / "README.md").write_bytes(content)
        with pytest.raises(UsageError, match=r"README.md is a card that cannot be merged"):
            write_card(report(), tmp_path)
        assert (tmp_path / "README.md").read_bytes() == content
    assert [p.name for p in tmp_path.iterdir()] == ["README.md"], "no picture is drawn"
