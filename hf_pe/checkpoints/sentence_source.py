"""Read what sentence-transformers applies after the model of a source."""

from transformers import PretrainedConfig

from hf_pe.checkpoints.sentence_modules import SentenceModules
from hf_pe.checkpoints.sentence_transformers import is_sentence_folder, read_sentence_modules, require_width
from hf_pe.checkpoints.source import Source


def is_sentence_transformer(source: Source) -> bool:
    """Return whether the source has sentence-transformers' side files."""
    return is_sentence_folder(source.beside())


def sentence_modules(source: Source) -> SentenceModules:
    """Return what sentence-transformers applies after this model; mean pooling where it has no such side files.

    Raises:
        UsageError: Its pooling, or one of its modules, is not supported.
    """
    beside = source.beside()
    if beside is None or not is_sentence_folder(beside):
        return SentenceModules()
    return read_sentence_modules(beside, allow_pickle=source.allow_pickle)


def require_sentence_width(source: Source, config: PretrainedConfig) -> None:
    """Refuse a hidden width that the source's dense layer does not read; see `sentence_transformers.require_width`."""
    beside = source.beside()
    if beside is not None:
        require_width(beside, getattr(config, "hidden_size", None))
