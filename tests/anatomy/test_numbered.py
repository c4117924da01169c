"""Numbers of tokens, layers and heads after a cut, in every form that configs hold them."""

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    GenerationConfig,
    MPNetModel,
    RobertaConfig,
    RobertaModel,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from hf_pe.anatomy import (
    change_,
    discover,
    keep_layers_,
    meta_model,
    names_tokens,
    renumber_layers,
    renumber_tokens,
    rows_in_place,
    tokens_named,
)
from hf_pe.dummies.outputs import outputs_of
from hf_pe.dummies.tiny import randomize_weights_, tiny
from hf_pe.surgery import cut
from hf_pe.verify.equivalence import verify_cut

KEPT = [0, 1, 2, 5, 7, 9]  # become 0 to 5; 3, 4, 6 and 8 are gone


@pytest.mark.parametrize(
    ("field", "before", "after"),
    [
        ("pad_token_id", 5, 3),
        ("pad_token_id", -1, -1),
        ("eos_token_id", [2, 3], [2]),
        ("suppress_tokens", [7, 8, 9], [4, 5]),
        ("begin_suppress_tokens", [3], []),
        ("bad_words_ids", [[1], [5, 3], [7, 9]], [[1], [4, 5]]),
        ("bad_words_ids", [[3]], None),
        ("sequence_bias", {(7,): 0.5, (3, 7): -1.0}, {(4,): 0.5}),
        ("sequence_bias", [[[7, 9], 0.5], [[3], 1.0]], [[[4, 5], 0.5]]),
        ("sequence_bias", {(3,): 1.0}, None),
        ("forced_decoder_ids", [[1, None], [2, 7]], [[1, None], [2, 4]]),
        ("forced_decoder_ids", [], []),
        ("force_words_ids", [[7, 9]], [[4, 5]]),
        ("force_words_ids", [[[7], [3]], [[9]]], [[[4]], [[5]]]),
        ("lang_to_id", {"<|en|>": 5, "<|de|>": 6}, {"<|en|>": 3}),
        ("task_to_id", {"transcribe": 7, "translate": 9}, {"transcribe": 4, "translate": 5}),
        ("text_decoder_lang_to_code_id", {"deu": 9}, {"deu": 5}),
    ],
)
def test_tokens_get_the_numbers_of_the_rows_that_are_kept(field, before, after):
    assert renumber_tokens({field: before, "max_length": 7}, KEPT) == {field: after}
    assert names_tokens(field)


@pytest.mark.parametrize(
    ("field", "value", "token"),
    [
        ("decoder_start_token_id", 3, 3),
        ("eos_token_id", [3, 4], 3),
        ("forced_decoder_ids", [[1, 2], [2, 6]], 6),
        ("force_words_ids", [[7, 8]], 8),
        ("force_words_ids", [[[3], [4]]], 3),
        ("no_timestamps_token_id", 8, 8),
    ],
)
def test_a_token_that_has_to_be_there_is_missed(field, value, token):
    with pytest.raises(ValueError, match=f"{field} {token} is not among the 6 rows"):
        renumber_tokens({field: value}, KEPT)


def test_other_vocabularies_and_counts_are_left_alone():
    values = {"vocoder_lang_code_to_id": {"deu": 3}, "num_beams": 3, "eos_token_id": None, "max_length": 8}
    assert renumber_tokens(values, KEPT) == {}
    assert tokens_named(values | {"lang_to_id": {"de": 6}, "bad_words_ids": [[3, 4]], "eos_token_id": [2]}) == {
        2,
        3,
        4,
        6,
    }


def test_timestamps_stay_in_order():
    assert renumber_tokens({"no_timestamps_token_id": 5}, [0, 5, 6, 7]) == {"no_timestamps_token_id": 1}
    assert renumber_tokens({"no_timestamps_token_id": 5}, [0, 5]) == {"no_timestamps_token_id": 1}
    for kept in ([0, 5, 7], [0, 5, 6, 8]):
        with pytest.raises(ValueError, match="timestamps in order"):
            renumber_tokens({"no_timestamps_token_id": 5}, kept)


def test_layers_get_the_numbers_of_those_that_are_kept():
    heads = {"alignment_heads": [[1, 0], [2, 3], [3, 1]], "dola_layers": [0, 3], "assistant_early_exit": 2}
    assert renumber_layers(heads, [0, 2, 3]) == {
        "alignment_heads": [[1, 3], [2, 1]], "dola_layers": [0, 2], "assistant_early_exit": 1
    }  # fmt: skip
    assert renumber_layers({"alignment_heads": [[1, 0]], "dola_layers": "high"}, [0, 2]) == {"alignment_heads": None}


def test_what_is_not_of_every_generation_config_is_removed():
    settings = GenerationConfig(bad_words_ids=[[3]], alignment_heads=[[1, 0]])
    change_(settings, {"bad_words_ids": None, "alignment_heads": None})
    assert settings.bad_words_ids is None and not hasattr(settings, "alignment_heads")


def test_token_ids_are_no_list_by_layer():
    """Two layers, and two tokens that are not to begin with."""
    config = WhisperConfig(decoder_layers=2, begin_suppress_tokens=[220, 257])
    keep_layers_(config, 2, [0])
    assert config.begin_suppress_tokens == [220, 257]


def vocabulary(model):
    (axis,) = discover(model.config, type(model)).named("vocabulary")
    return axis


def test_a_padding_token_from_which_positions_are_counted_stays_in_its_row():
    config = RobertaConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=20, pad_token_id=1, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    model = randomize_weights_(RobertaModel(config))
    axis = vocabulary(model)
    with pytest.raises(ValueError, match="RobertaModel counts positions from its padding token, which is row 1"):
        cut(model, axis, {axis.groups[0]: [1, 2, 3, *range(10, 40)]})
    rows = [0, 1, 2, 3, *range(10, 40)]
    smaller = cut(model, axis, {axis.groups[0]: rows})
    new = torch.tensor([[2, 10, 11, 3, 1]])
    one, other = (outputs_of(m, {"input_ids": ids}) for m, ids in ((model, torch.tensor(rows)[new]), (smaller, new)))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("model_type", "rows"),
    [("roberta", 2), ("camembert", 2), ("xlm-roberta", 2), ("xglm", 2), ("mpnet", 2), ("bert", 0), ("llama", 0), ("bart", 0), ("t5", 0)],
)  # fmt: skip
def test_models_that_count_positions_from_their_padding_are_known(model_type, rows):
    config = tiny(AutoConfig.for_model(model_type, **({"pad_token_id": 1} if model_type == "llama" else {})))
    model_class = AutoModel._model_mapping[type(config)]
    model = meta_model(config, model_class)
    (axis,) = discover(config, model_class).named("vocabulary")
    assert rows_in_place(model, {slot.name.rpartition(".")[0] for slot in axis.slots}) == rows


def test_rows_of_a_model_with_its_padding_in_place_are_proved():
    for model_class in (RobertaModel, MPNetModel):
        config = model_class.config_class(vocab_size=200)
        assert verify_cut(config, model_class, discover(config, model_class).named("vocabulary")[0]).holds


def whisper(**settings) -> WhisperForConditionalGeneration:
    config = WhisperConfig(
        vocab_size=60, d_model=16, encoder_layers=2, decoder_layers=4, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, num_mel_bins=8, max_source_positions=16,
        max_target_positions=32, pad_token_id=39, bos_token_id=39, eos_token_id=39, decoder_start_token_id=40,
        begin_suppress_tokens=[7, 39], median_filter_width=1,
    )  # fmt: skip
    model = randomize_weights_(WhisperForConditionalGeneration(config))
    languages = {"lang_to_id": {"<|en|>": 41, "<|de|>": 42}, "task_to_id": {"transcribe": 44, "translate": 43}}
    named = {**languages, "no_timestamps_token_id": 45, "is_multilingual": True, "suppress_tokens": [5, 8]}
    ids = {"pad_token_id": 39, "bos_token_id": 39, "eos_token_id": 39, "decoder_start_token_id": 40}
    model.generation_config = GenerationConfig(**ids, **named, **settings)
    return model


def words_of(model):
    """Generate with word timestamps."""
    features = torch.randn(1, 8, 32, generator=torch.Generator().manual_seed(0))
    options = {"language": "en", "task": "transcribe", "return_token_timestamps": True, "max_new_tokens": 3}
    return model.generate(features, attention_mask=torch.ones(1, 32, dtype=torch.long), **options)


def test_alignment_heads_go_with_their_layers():
    model = whisper(alignment_heads=[[1, 0], [2, 1], [3, 0]])
    axis = next(axis for axis in discover(model.config, type(model)).axes if axis.name == "decoder.layers")
    (stack,) = axis.groups
    smaller = cut(model, axis, {stack: [0, 2, 3]})
    assert smaller.generation_config.alignment_heads == [[1, 1], [2, 0]]
    assert model.generation_config.alignment_heads == [[1, 0], [2, 1], [3, 0]]
    assert "token_timestamps" in words_of(smaller)
    none = cut(model, axis, {stack: [0]})
    with pytest.raises(ValueError, match="no `alignment_heads`, token-level timestamps not available"):
        words_of(none)
    encoder = next(axis for axis in discover(model.config, type(model)).axes if axis.name == "encoder.layers")
    shorter = cut(model, encoder, {encoder.groups[0]: [1]})
    assert shorter.generation_config.alignment_heads == [[1, 0], [2, 1], [3, 0]]


def test_languages_and_tasks_get_their_new_numbers():
    model = whisper()
    axis = vocabulary(model)
    rows = [*range(6), 7, 39, 40, 41, 43, 44, 45, 46, 47]  # without German
    smaller = cut(model, axis, {axis.groups[0]: rows})
    settings = smaller.generation_config
    assert settings.lang_to_id == {"<|en|>": rows.index(41)} and settings.no_timestamps_token_id == rows.index(45)
    assert settings.task_to_id == {"transcribe": rows.index(44), "translate": rows.index(43)}
    assert settings.suppress_tokens == [5] and smaller.config.begin_suppress_tokens == [6, 7]
    features = torch.randn(1, 8, 32, generator=torch.Generator().manual_seed(0))
    options = {"task": "transcribe", "max_new_tokens": 3, "attention_mask": torch.ones(1, 32, dtype=torch.long)}
    assert int(smaller.generate(features, language="en", **options).max()) < len(rows)
    with pytest.raises(ValueError, match=r"<\|de\|> is not supported by this specific model"):
        smaller.generate(features, language="de", **options)


def test_alignment_heads_do_not_outlive_a_cut_of_heads():
    """A smaller hidden width takes whole heads along, here and there other ones."""
    model = whisper(alignment_heads=[[1, 0]])
    axes = discover(model.config, type(model)).axes
    (axis,) = (axis for axis in axes if axis.kind.is_residual)
    assert axis.whole_heads and not any(axis.native for axis in axes if axis.kind.is_heads)
    smaller = cut(model, axis, {group: axis.first_units(group, 8) for group in axis.groups})
    assert not hasattr(smaller.generation_config, "alignment_heads")
    assert hasattr(model.generation_config, "alignment_heads")
