import itertools
from contextlib import nullcontext

import pytest
from transformers import (
    BertModel,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_pe import StructuredPruning
from hf_pe.errors import UsageError
from hf_pe.model_spec import ModelSpec
from hf_pe.prune.sizes.allowed import (
    ambiguous_width,
    candidate_sizes,
    kept_sizes,
    resized_spec,
    rounding_notes,
    sizes_in_turn,
    smaller_sizes,
)
from hf_pe.prune.sizes.search import (
    SensitivityPoint,
    depth_by_width_paths,
    first_fitting,
    first_within,
    pareto_maximal,
    path_by_loss,
    single_axis_paths,
    uniform_path,
)
from tests.helpers import bert_config

BERT = ModelSpec(config=bert_config(), model_class=BertModel)


def test_a_ladder_has_every_size_the_config_can_say():
    assert [rung["ffn"] for rung in candidate_sizes(BERT, "ffn", 32)] == [128, 96, 64, 32]
    assert [rung["layers"] for rung in candidate_sizes(BERT, "layers", 8)] == [4, 3, 2, 1]
    config = LlamaConfig(
        hidden_size=576, num_attention_heads=9, num_key_value_heads=9, head_dim=64, num_hidden_layers=2
    )
    llama = ModelSpec(config=config, model_class=LlamaForCausalLM)
    assert [rung["kv_groups"] for rung in candidate_sizes(llama, "kv_groups", 8)] == [9, 8, 6, 4, 3, 2, 1]


def test_a_width_that_a_whole_ratio_says_is_snapped_to_it():
    config = Dinov2Config(hidden_size=24, num_attention_heads=4, num_hidden_layers=2, image_size=28)
    spec = ModelSpec(config=config, model_class=Dinov2Model)
    assert [rung["ffn"] for rung in candidate_sizes(spec, "ffn", 8)] == [96, 72, 48, 24]
    assert kept_sizes(spec, {"ffn": 0.6}, 8) == {"ffn": 72}


@pytest.mark.parametrize(("keep", "asked"), [({"ffn": 1}, True), ({"encoder.hidden": 1}, True), ({"ffn": 1.0}, False), ({"layers": 1, "kv_groups": 1}, False), ({"ffn": 2}, False)])  # fmt: skip
def test_one_unit_or_all_of_a_width_is_asked_back(keep, asked):
    assert ("Write 1.0 to keep all" in ambiguous_width(keep)) == asked
    with pytest.raises(ValueError, match="one unit or as all") if asked else nullcontext():
        StructuredPruning(keep=keep)


def test_towers_keep_the_same_share():
    config = T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_decoder_layers=4, num_heads=4, vocab_size=99)
    spec = ModelSpec(config=config, model_class=T5ForConditionalGeneration)
    rungs = candidate_sizes(spec, "layers", 8)
    assert len(rungs[0]) == 2
    assert {tuple(sorted(rung.values())) for rung in rungs} == {(2, 4), (1, 2)}


def test_devices_that_share_a_layer_divide_its_heads_and_widths():
    config = LlamaConfig(
        hidden_size=768, num_attention_heads=12, num_key_value_heads=6, head_dim=64, num_hidden_layers=2,
        intermediate_size=1536,
    )  # fmt: skip
    llama = ModelSpec(config=config, model_class=LlamaForCausalLM)
    assert [rung["kv_groups"] for rung in candidate_sizes(llama, "kv_groups", 8, 2)] == [6, 4, 2]
    assert {rung["ffn"] % 64 for rung in candidate_sizes(llama, "ffn", 16, 4)} == {0}
    asked = {"ffn": 0.7, "kv_groups": 0.5}
    sizes = kept_sizes(llama, asked, 8, 4)
    assert sizes == {"ffn": 1088, "kv_groups": 4}
    first, second = rounding_notes(llama, asked, sizes)
    assert "ffn: 1088 of 1536" in first and "0.7 asks for 1075.2" in first
    assert "kv_groups: 4 of 6" in second
    assert rounding_notes(llama, {"ffn": 0.5}, kept_sizes(llama, {"ffn": 0.5}, 8)) == ()
    with pytest.raises(UsageError, match="none of 1 to 6 kv_groups can be divided among 8 devices"):
        kept_sizes(llama, {"kv_groups": 0.5}, 8, 8)


def mistral(heads: int, groups: int) -> ModelSpec:
    config = MistralConfig(
        hidden_size=8 * heads, num_attention_heads=heads, num_key_value_heads=groups, head_dim=8, num_hidden_layers=2,
        intermediate_size=64, vocab_size=99,
    )  # fmt: skip
    return ModelSpec(config=config, model_class=MistralForCausalLM)


@pytest.mark.parametrize(
    ("heads", "groups", "sizes"),
    [(8, 4, [8, 4]), (8, 2, [8, 6, 4, 2]), (6, 3, [6, 3]), (4, 1, [4, 3, 2, 1]), (12, 3, [12, 9, 6, 3])],
)
def test_each_key_value_group_keeps_as_many_query_heads(heads, groups, sizes):
    spec = mistral(heads, groups)
    assert [candidate["heads"] for candidate in candidate_sizes(spec, "heads", 8)] == sizes
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        nearest = min(sizes, key=lambda size: abs(size - share * heads))
        assert kept_sizes(spec, {"heads": share}, 8)["heads"] == nearest
    for size in {*range(1, heads)} - {*sizes}:
        with pytest.raises(UsageError, match=f"does not allow {size}; it allows {', '.join(map(str, sizes[::-1]))}"):
            kept_sizes(spec, {"heads": size}, 8)


def test_query_heads_divide_among_groups_and_devices():
    spec = mistral(12, 3)
    assert [candidate["heads"] for candidate in candidate_sizes(spec, "heads", 8, 2)] == [12, 6]
    with pytest.raises(UsageError, match="none of 1 to 12 heads can be divided among 5 devices"):
        kept_sizes(spec, {"heads": 0.5}, 8, 5)


def test_query_heads_that_go_with_their_group_are_counted():
    """Two of four groups take four of eight query heads along."""
    spec = mistral(8, 4)
    sizes = kept_sizes(spec, {"heads": 0.5, "kv_groups": 0.5}, 8)
    assert sizes_in_turn(spec, sizes)[0] == {"kv_groups": 2, "heads": 4}
    after = resized_spec(spec, sizes)
    assert (after.config.num_attention_heads, after.config.num_key_value_heads) == (4, 2)
    assert resized_spec(spec, {"heads": 8, "kv_groups": 2}).config.num_attention_heads == 4
    assert kept_sizes(spec, {"heads": 3, "kv_groups": 3}, 8) == {"heads": 3, "kv_groups": 3}
    with pytest.raises(UsageError, match=r"keep\.heads: the model has 6 units, 6 of 9 once other axes are cut"):
        kept_sizes(mistral(9, 3), {"heads": 9, "kv_groups": 2}, 8)
    with pytest.raises(UsageError, match=r"keep\.heads: .* does not allow 3; it allows 2, 4, 6, 8"):
        kept_sizes(mistral(12, 3), {"heads": 3, "kv_groups": 2}, 8)
    shares = {"heads": 1.0, "kv_groups": 0.6}
    assert rounding_notes(mistral(12, 3), shares, kept_sizes(mistral(12, 3), shares, 8))[0].startswith(
        "heads: 8 of 12 units"
    )


def test_a_path_only_goes_down():
    candidates = [candidate_sizes(BERT, "ffn", 8), candidate_sizes(BERT, "layers", 8)]
    curves = [
        [SensitivityPoint(0, 0, 1.0), SensitivityPoint(8, 0.1, 0.8), SensitivityPoint(15, 0.9, 0.6)],
        [SensitivityPoint(0, 0, 1.0), SensitivityPoint(1, 0.05, 0.75), SensitivityPoint(3, 2, 0.25)],
    ]
    for path in (uniform_path(candidates), path_by_loss(candidates, curves)):
        assert path[0] == {"ffn": 128, "layers": 4} and path[-1] == {"ffn": 8, "layers": 1}
        for here, there in itertools.pairwise(path):
            assert all(there[name] <= here[name] for name in here)


def test_the_cheapest_loss_for_what_is_saved_goes_first():
    candidates = [[{"a": size} for size in (4, 3, 2)], [{"b": size} for size in (2, 1)]]
    curves = [
        [SensitivityPoint(0, 0, 1.0), SensitivityPoint(1, 0.5, 0.9), SensitivityPoint(2, 0.6, 0.5)],
        [SensitivityPoint(0, 0, 1.0), SensitivityPoint(1, 0.4, 0.8)],
    ]
    # a's first rung alone is dear (5 per saved unit), both together are the cheapest (1.2), b costs 2
    assert path_by_loss(candidates, curves) == [
        {"a": 4, "b": 2}, {"a": 3, "b": 2}, {"a": 2, "b": 2}, {"a": 2, "b": 1},
    ]  # fmt: skip


@pytest.mark.parametrize("answer", range(6))
def test_first_finds_where_it_begins_to_fit(answer):
    path = [{"a": number} for number in range(6)]
    assert first_fitting(path, lambda setting: setting["a"] >= answer) == answer
    assert first_fitting(path, lambda setting: False) is None


def test_removed_is_what_is_less_and_depth_comes_first():
    assert list(smaller_sizes(BERT, {"ffn": 64, "layers": 2}).items()) == [("layers", 2), ("ffn", 64)]
    assert smaller_sizes(BERT, {"ffn": 128, "layers": 4}) == {}
    after = resized_spec(BERT, {"ffn": 64, "layers": 2})
    assert (after.config.intermediate_size, after.config.num_hidden_layers) == (64, 2)


def test_an_axis_alone_leaves_the_others_whole():
    one, other = single_axis_paths([[{"a": 2}, {"a": 1}], [{"b": 3}, {"b": 2}]])
    assert one == [{"a": 2, "b": 3}, {"a": 1, "b": 3}]
    assert other == [{"a": 2, "b": 3}, {"a": 2, "b": 2}]
    assert first_within(other, lambda setting: setting["b"] / 2) == {"a": 2, "b": 2}
    assert first_within(one, lambda setting: setting["b"] / 2) is None


def test_each_depth_is_combined_with_the_width_that_fits():
    candidates = [candidate_sizes(BERT, "ffn", 8), candidate_sizes(BERT, "layers", 8)]
    paths = depth_by_width_paths(candidates)
    assert [path[0] for path in paths] == [{"ffn": 128, "layers": depth} for depth in (4, 3, 2, 1)]
    assert all({setting["layers"] for setting in path} == {path[0]["layers"]} for path in paths)
    assert all(path[-1]["ffn"] == 8 for path in paths)
    assert depth_by_width_paths(candidates[:1]) == []
    long = [[{"a": size} for size in range(100, 0, -1)], [{"b": size} for size in range(200, 0, -1)]]
    assert [path[0]["a"] for path in depth_by_width_paths(long)] == [100, 86, 72, 58, 43, 29, 15, 1]


def test_ends_that_others_exceed_are_not_tried():
    ends = [{"a": 4, "b": 2}, {"a": 4, "b": 1}, {"a": 2, "b": 3}, {"a": 4, "b": 2}, {"a": 2, "b": 3}]
    assert pareto_maximal(ends) == [{"a": 4, "b": 2}, {"a": 2, "b": 3}]
