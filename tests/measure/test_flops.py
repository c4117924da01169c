"""Counts against closed forms; a multiply-add is 2."""

from transformers import AutoConfig, BertModel, LlamaForCausalLM, MixtralModel, ViTModel

from hf_pe.measure import flops

LENGTH = 128


def test_bert_at_its_real_size():
    config = AutoConfig.for_model("bert")
    h, i = config.hidden_size, config.intermediate_size
    layer = 2 * LENGTH * (4 * h * h + 2 * h * i) + 4 * LENGTH**2 * h
    assert flops(config, BertModel, length=LENGTH) == config.num_hidden_layers * layer + 2 * h * h


def test_llama_with_grouped_queries_and_its_head():
    config = AutoConfig.for_model(
        "llama", hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=8,
        num_key_value_heads=2, head_dim=8, vocab_size=100,
    )  # fmt: skip
    layer = 2 * LENGTH * (64 * 64 * 2 + 64 * 16 * 2 + 3 * 64 * 160) + 4 * LENGTH**2 * 64
    assert flops(config, LlamaForCausalLM, length=LENGTH) == 3 * layer + 2 * LENGTH * 64 * 100


def test_mixtral_counts_the_experts_that_run():
    config = AutoConfig.for_model(
        "mixtral", hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, vocab_size=100, num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    attention = 2 * LENGTH * (64 * 64 * 2 + 64 * 32 * 2) + 4 * LENGTH**2 * 64
    experts = 2 * LENGTH * (64 * 4 + 2 * 3 * 64 * 96)
    assert flops(config, MixtralModel, length=LENGTH) == 2 * (attention + experts)


def test_vit():
    config = AutoConfig.for_model("vit", hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                                  image_size=32, patch_size=8)  # fmt: skip
    tokens = 17
    layer = 2 * tokens * (4 * 64 * 64 + 2 * 64 * 128) + 4 * tokens**2 * 64
    patches = 2 * 16 * 3 * 8 * 8 * 64
    pooler = 2 * 64 * config.pooler_output_size
    assert flops(config, ViTModel) == 2 * layer + patches + pooler


def test_the_count_grows_with_batch_and_not_with_the_attention_that_is_set():
    config = AutoConfig.for_model("bert", num_hidden_layers=1)
    one = flops(config, BertModel, length=LENGTH)
    assert flops(config, BertModel, batch=3, length=LENGTH) == 3 * one
    config._attn_implementation = "sdpa"
    assert flops(config, BertModel, length=LENGTH) == one
    assert config._attn_implementation == "sdpa"
