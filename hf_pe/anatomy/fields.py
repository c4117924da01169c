"""Lists the names that architectures give to their sizes: everything that is known about model families, as data.

A name that several families use needs one entry here; discovery and verification do the rest.
"""

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
"""Config fields that state a size as one number, with the kind of axis that has this size."""


QUERY_HEADS = tuple(field for field, kind in AXIS_OF_FIELD.items() if kind == "heads")
"""Config fields, and attributes of modules, that count query heads."""


DEPTHS = ("depths", "depth", "stage_num_blocks", "n_attn_blocks", "blocks_per_stage")
"""Config fields that list the number of layers of each stage (ConvNeXt, Swin, ResNet): one axis for each entry."""


STAGES = ("hidden_sizes", "embed_dims", "embed_dim")
"""Config fields that list the hidden width of each stage (ConvNeXt, ResNet, CvT): one axis for each entry."""


RATIOS = ("mlp_ratio", "mlp_ratios")
"""Config fields that state the FFN width as a multiple of the hidden width, for all stages or as a list."""


KIND_OF_LIST = {
    **dict.fromkeys(DEPTHS, "layers"),
    **dict.fromkeys(STAGES, "hidden"),
    **dict.fromkeys(RATIOS, "ffn"),
}
"""Config fields that state a size as a list, one entry a stage, or as a ratio, with the kind of axis."""


WIDTHS = ("embed_dim", "embed_dims", "hidden_size", "hidden_sizes")
"""The hidden widths that `RATIOS` multiply. Where one ratio holds for stages of several widths, the units are those of
the first stage, and a unit is several channels of a wider stage."""


QUERIES_OF = {"num_key_value_heads": "num_attention_heads"}
"""Config fields that count key-value heads, with the field of the query heads, which are cut along with them."""


FOLLOWERS = {"vocab_size": ("decoder_vocab_size",), "hidden_size": ("embedding_size", "word_embed_proj_dim")}
"""Config fields that repeat a size, and change with it where they have the same value."""


HEAD_SIZES = ("head_dim", "d_kv")
"""Config fields that state the size of a head. Where a config has none, `head_dim` is set before heads or width
change."""


EVERYWHERE = "model"
"""The one group of an axis whose units all blocks share: hidden width, vocabulary."""


UNSCALED = ("gpt_neo",)
"""Model types that do not divide attention scores by the root of a head's size, which neither shapes nor attributes
show."""


HEADS_BY_ROOT = {
    "longt5": "scale_decoder_outputs",
    "switch_transformers": "tie_word_embeddings",
    "t5": "scale_decoder_outputs",
    "udop": "tie_word_embeddings",
    "umt5": "tie_word_embeddings",
}
"""Model types whose output head divides its input by the root of the width where this config field is true. Shapes do
not show it, since the division is in the forward pass."""


QKVO, THREE = 4, 3
"""Linear layers from the hidden width to itself in one attention: query, key, value and output, some of them fused.
Longformer's global attention has three more."""


ROTATIONS = ("inv_freq", "embed_positions")
"""Endings of the names of buffers that rotary embeddings keep."""


BY_HEAD = ("query_key_value",)
"""Linear layers in which query, key and value lie head by head; in others they lie one after the other. Shapes do not
show which."""
