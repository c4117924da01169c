"""The names that architectures give to their sizes: all that is known of families, as data."""

AXIS_OF_FIELD = {
    "intermediate_size": "ffn",
    "ffn_dim": "ffn",
    "ffn_hidden_size": "ffn",
    "d_ff": "ffn",
    "n_inner": "ffn",
    "hidden_dim": "ffn",
    "d_inner": "ffn",
    "mlp_dim": "ffn",
    "dff": "ffn",
    "dim_ff": "ffn",
    "feed_forward_size": "ffn",
    "block_ff_dim": "ffn",
    "encoder_ffn_dim": "ffn",
    "decoder_ffn_dim": "ffn",
    "num_hidden_layers": "layers",
    "num_layers": "layers",
    "layers": "layers",
    "num_decoder_layers": "layers",
    "n_layers": "layers",
    "n_layer": "layers",
    "encoder_layers": "layers",
    "decoder_layers": "layers",
    "encoder_num_hidden_layers": "layers",
    "decoder_num_hidden_layers": "layers",
    "depth": "layers",
    "num_blocks": "layers",
    "num_attention_heads": "heads",
    "num_heads": "heads",
    "n_heads": "heads",
    "n_head": "heads",
    "attention_heads": "heads",
    "encoder_attention_heads": "heads",
    "decoder_attention_heads": "heads",
    "encoder_num_attention_heads": "heads",
    "num_encoder_attention_heads": "heads",
    "num_decoder_attention_heads": "heads",
    "decoder_num_attention_heads": "heads",
    "num_key_value_heads": "kv_groups",
    "hidden_size": "hidden",
    "d_model": "hidden",
    "n_embd": "hidden",
    "emb_dim": "hidden",
    "dim": "hidden",
    "embed_dim": "hidden",
    "vocab_size": "vocabulary",
    "n_words": "vocabulary",
    "num_local_experts": "experts",
    "num_experts": "experts",
    "n_routed_experts": "experts",
    "moe_intermediate_size": "expert_ffn",
    "expert_ffn_hidden_size": "expert_ffn",
}
"""Fields that say a size as one number, and the kind of axis that it is the size of."""


QUERY_HEADS = tuple(field for field, kind in AXIS_OF_FIELD.items() if kind == "heads")
"""Fields, and attributes of modules, that count query heads."""


DEPTHS = ("depths", "depth", "stage_num_blocks", "n_attn_blocks", "blocks_per_stage")
"""Fields that list the layers of each stage (ConvNeXt, Swin, ResNet): an axis for each entry."""


STAGES = ("hidden_sizes", "embed_dims", "embed_dim")
"""Fields that list the hidden width of each stage (ConvNeXt, ResNet, CvT): an axis for each entry."""


RATIOS = ("mlp_ratio", "mlp_ratios")
"""Fields that say the FFN width as a multiple of the hidden one; lists say it stage by stage."""


KIND_OF_LIST = {
    **dict.fromkeys(DEPTHS, "layers"),
    **dict.fromkeys(STAGES, "hidden"),
    **dict.fromkeys(RATIOS, "ffn"),
}
"""Fields that say a size stage by stage, or as a ratio, and the kind of axis that it is the size of."""


WIDTHS = ("embed_dim", "embed_dims", "hidden_size", "hidden_sizes")
"""The hidden widths that they multiply. Where one ratio stands for stages of several widths, the first is meant: a unit
of a wider stage is more channels."""


QUERIES_OF = {"num_key_value_heads": "num_attention_heads"}
"""Fields that count key-value heads, and the one that moves along: each keeps its share of query heads."""


FOLLOWERS = {"vocab_size": ("decoder_vocab_size",), "hidden_size": ("embedding_size", "word_embed_proj_dim")}
"""Fields that say the same size again, and move along where they do."""


HEAD_SIZES = ("head_dim", "d_kv")
"""Fields that say the size of a head. Where a config has none, `head_dim` is written down before heads or width go."""


EVERYWHERE = "model"
"""The one group of an axis whose units all blocks share: hidden width, vocabulary."""


UNSCALED = ("gpt_neo",)
"""Types that do not divide their scores by the root of a head's size; neither shapes nor attributes tell."""


HEADS_BY_ROOT = {
    "longt5": "scale_decoder_outputs",
    "switch_transformers": "tie_word_embeddings",
    "t5": "scale_decoder_outputs",
    "udop": "tie_word_embeddings",
    "umt5": "tie_word_embeddings",
}
"""Types whose language models divide what their output head reads by the root of the width, as long as this field of
the config is true; the division stands in their forward, where shapes do not tell."""


QKVO, THREE = 4, 3
"""Maps between the hidden width and itself in an attention: query, key, value and output, some of them fused. Some have
three more of the first kind (Longformer's global ones)."""


ROTATIONS = ("inv_freq", "embed_positions")
"""How buffers end that turn queries and keys."""


BY_HEAD = ("query_key_value",)
"""Maps in which query, key and value lie head by head; elsewhere they lie one after the other. Shapes can't tell."""
