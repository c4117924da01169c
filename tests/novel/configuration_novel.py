"""A config that transformers does not know: a checkpoint brings it along."""

from transformers import PretrainedConfig


class NovelConfig(PretrainedConfig):
    model_type = "novel"

    def __init__(self, vocab_size=99, hidden_size=32, intermediate_size=128, num_hidden_layers=3, **kwargs):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        super().__init__(**kwargs)
