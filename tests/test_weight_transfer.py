import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from hf_pe.dummies.tiny import randomize_weights_
from hf_pe.errors import UsageError
from hf_pe.weight_transfer import embeddings_for, random_init, start_from
from tests.helpers import bert_config


def distilbert(layers):
    return randomize_weights_(
        DistilBertModel(
            DistilBertConfig(
                vocab_size=200, dim=64, n_layers=layers, n_heads=4, hidden_dim=128, max_position_embeddings=64
            )
        ),
        3,
    ).eval()


def test_another_architecture_with_the_same_shapes_becomes_the_same_function():
    teacher = randomize_weights_(BertModel(bert_config(), add_pooling_layer=False)).eval()
    teacher.embeddings.token_type_embeddings.weight.data.zero_()
    student = distilbert(4)
    copied = start_from(teacher, student)
    assert set(copied) == {name for name, _ in student.named_parameters()}
    ids = torch.randint(6, 190, (2, 7))
    with torch.no_grad():
        torch.testing.assert_close(student(ids).last_hidden_state, teacher(ids).last_hidden_state, rtol=1e-4, atol=1e-4)


def test_a_shallower_student_takes_the_layers_it_is_told():
    teacher = randomize_weights_(BertModel(bert_config())).eval()
    student = distilbert(2)
    start_from(teacher, student, [1, 3])
    for mine, theirs in enumerate((1, 3)):
        own, other = student.transformer.layer[mine], teacher.encoder.layer[theirs]
        assert torch.equal(own.ffn.lin1.weight, other.intermediate.dense.weight)
        assert torch.equal(own.attention.v_lin.weight, other.attention.self.value.weight)
        assert torch.equal(own.output_layer_norm.bias, other.output.LayerNorm.bias)


def test_what_does_not_fit_stays_as_it_was():
    teacher = randomize_weights_(BertModel(bert_config())).eval()
    student = randomize_weights_(BertModel(BertConfig(**bert_config(intermediate_size=96).to_dict())), 5)
    before = {n: p.clone() for n, p in student.named_parameters()}
    copied = set(start_from(teacher, student))
    for name, parameter in student.named_parameters():
        fits = parameter.shape == teacher.get_parameter(name).shape
        assert (name in copied) == fits
        assert torch.equal(parameter, teacher.get_parameter(name) if fits else before[name])


def test_language_models_keep_their_ties():
    sizes = {"vocab_size": 200, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    teacher = randomize_weights_(LlamaForCausalLM(LlamaConfig(**sizes))).eval()
    student = randomize_weights_(MistralForCausalLM(MistralConfig(**sizes, sliding_window=None)), 5).eval()
    start_from(teacher, student)
    ids = torch.randint(6, 190, (2, 7))
    with torch.no_grad():
        torch.testing.assert_close(student(ids).logits, teacher(ids).logits, rtol=1e-4, atol=1e-4)
    assert student.lm_head.weight is student.model.embed_tokens.weight


@pytest.mark.parametrize("layers", [[0], [0, 4]])
def test_layers_that_are_not_there_are_refused(layers):
    with pytest.raises(UsageError, match=r"expected 2 numbers within 0\.\.3"):
        start_from(randomize_weights_(BertModel(bert_config())), distilbert(2), layers)


def tokenizer_of(words, style):
    """Whole words and, behind them, every letter to go on with."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    marks = [f"##{c}" for c in letters] if style == "##" else list(letters)
    begins = "" if style == "##" else "\u2581"
    tokens = ["[UNK]", "[PAD]", *(begins + w for w in [*words, *letters]), *marks]
    vocabulary = {t: i for i, t in enumerate(dict.fromkeys(tokens))}
    if style == "##":
        raw = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        raw.pre_tokenizer = pre_tokenizers.Whitespace()
    else:
        raw = Tokenizer(models.Unigram([(t, -1.0 / len(t)) for t in vocabulary], unk_id=0))
        raw.pre_tokenizer = pre_tokenizers.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]", pad_token="[PAD]")


@pytest.mark.parametrize("style", ["##", "\u2581"])
def test_a_table_for_other_tokens_takes_rows_of_the_same_strings_and_of_pieces(style):
    tokenizer, new_tokenizer = tokenizer_of(["cat", "do"], "##"), tokenizer_of(["cat", "dog"], style)
    table = torch.randn(len(tokenizer), 3)
    embeddings, shared = embeddings_for(table, tokenizer, new_tokenizer)
    rows, new_rows = tokenizer.get_vocab(), new_tokenizer.get_vocab()
    begins = "" if style == "##" else "\u2581"
    assert embeddings.shape == (len(new_tokenizer), 3)
    assert torch.equal(embeddings[new_rows[f"{begins}cat"]], table[rows["cat"]])
    assert torch.equal(embeddings[new_tokenizer.pad_token_id], table[tokenizer.pad_token_id])
    torch.testing.assert_close(embeddings[new_rows[f"{begins}dog"]], table[[rows["do"], rows["##g"]]].mean(0))
    assert shared == pytest.approx(1 - 1 / len(new_tokenizer))


@torch.no_grad()
@pytest.mark.parametrize("model_type", ["efficientnet", "mobilenet_v2"])
def test_signals_get_through_a_random_model(model_type):
    """What it says of two images differs, as far as they do."""
    config = AutoConfig.for_model(model_type, image_size=32)
    torch.manual_seed(0)
    model = random_init(AutoModel._model_mapping[type(config)], config).train()
    features = model(pixel_values=torch.randn(16, 3, 32, 32)).pooler_output
    assert float(features.std(0).mean()) > 0.01
