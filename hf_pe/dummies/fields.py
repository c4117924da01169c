"""Lists the sizes of tiny models, by the names of config fields."""

GRID = 4
"""Patches a side of an image whose patches keep their size."""


LARGE_IMAGE = 512
"""Pixels a side from which images become smaller even where widths stay: to `GRID` patches, else to a sixteenth."""


TINY_FIELDS = {
    "head_dim": 8,
    "d_kv": 8,
    "rotary_dim": 4,
    "decoder_vocab_size": 99,
    "vocab_size_per_layer_input": 99,
    "hidden_size_per_layer_input": 16,
    "global_head_dim": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "max_source_positions": 32,
    "max_target_positions": 32,
    "num_mel_bins": 8,
    "image_size": 32,
    "patch_size": 8,
    "query_pre_attn_scalar": 8,
    "sliding_window": 6,
    "local_attention": 6,
    "pooler_output_size": 32,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "first_k_dense_replace": 1,
    "topk_group": 1,
    "upsample_groups": 32,
    "upsample_initial_channel": 64,
    "d_head": 8,
    "context_size": 8,
    "max_2d_position_embeddings": 64,
    "entity_vocab_size": 99,
    "entity_emb_size": 12,
    "codebook_size": 64,
    "t2u_vocab_size": 99,
    "unit_hifi_gan_vocab_size": 99,
    "encoder_hash_byte_group_vocab": 50,
    "true_hidden_size": 128,
    "qk_head_dim": 16,
    "word_embed_proj_dim": 32,
    "adapter_in_dim": 32,
    "adapter_input_size": 32,
    "n_groups": 2,
    "state_size": 16,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_ssm": 64,
    "mamba_d_state": 16,
    "mamba_chunk_size": 16,
    "chunk_size": 16,
    "num_filters": 4,
    "zero_expert_num": 4,
    "moe_topk": 2,
    "d_latents": 32,
    "num_latents": 16,
    "num_self_attends_per_block": 2,
    "pred_num_attention_heads": 4,
    "frames_per_clip": 4,
    "feedforward_size": 24,
    "image_embedding_size": GRID,
    "linear_head_dim": 8,
    "linear_num_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
}


MROPE_SECTIONS = (2, 1, 1), (1, 1, 0), (1, 0, 0)
"""Sections of multimodal rotary embeddings that fit a tiny head of which all, half or a quarter is rotated."""


MAX_STAGE_LAYERS = 4
"""Layers of a stage in a tiny model, where the config lists the layers of each stage."""


MAX_PARAMETERS = 130_000_000
"""Parameters up to which a model is run for verification where no smaller one can be built."""
