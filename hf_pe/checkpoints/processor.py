"""Load the tokenizer or processor of a model, or one that the user names."""

import itertools
from pathlib import Path
from typing import Any

import transformers
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_pe.checkpoints.source import Source, package_path, public_folder_name, short_reason
from hf_pe.dummies.sizes import processor_size
from hf_pe.errors import UsageError, pass_on_memory_errors
from hf_pe.loading import ProcessorClass


def load_processor(source: Source, processor_class: ProcessorClass = "AutoTokenizer") -> Any:
    """Load the tokenizer, image processor, feature extractor or processor that makes the model's inputs.

    Args:
        source: Resolved source of the model.
        processor_class: Auto class that is tried first; then AutoTokenizer, then AutoProcessor.

    Raises:
        UsageError: The model comes with none.
    """
    paths = [source.path] if source.adapter is None else [source.adapter, source.path]
    reasons: list[Exception] = []
    for name, path in itertools.product(dict.fromkeys((processor_class, "AutoTokenizer", "AutoProcessor")), paths):
        try:
            processor = getattr(transformers, name).from_pretrained(path, **source.options())
            if not _has_no_words(processor):
                return processor
            reasons.append(OSError("its tokenizer has no words but the special tokens: its files are missing"))
        except Exception as error:  # a damaged file may raise anything
            pass_on_memory_errors(error)
            reasons.append(error)
    raise UsageError(
        f"{source.name} has no tokenizer or processor that transformers can load: {short_reason(reasons[0])}. Put its "
        "files beside the weights (tokenizer.json, preprocessor_config.json and the like), or name another one's."
    )


def _has_no_words(processor: Any) -> bool:
    """Return whether a tokenizer has special tokens only: transformers makes one where a folder has no files for it."""
    if not isinstance(processor, PreTrainedTokenizerBase):
        return False
    try:
        words = processor.get_vocab().keys()
    except NotImplementedError:
        return False
    return not words - set(processor.all_special_tokens)


def load_named_processor(
    name: str, processor_class: ProcessorClass = "AutoTokenizer", *, trust_remote_code: bool = False
) -> Any:
    """Load the tokenizer or processor of another folder or id than the model's.

    Args:
        name: Folder, Hub id or `package:NAME/inner/path`.
        processor_class: Auto class that is tried first; see `load_processor`.
        trust_remote_code: Whether to run custom code that comes with it.

    Raises:
        UsageError: There is none.
    """
    path = package_path(name) if name.startswith("package:") else Path(name).expanduser()
    local = path.is_dir()
    if not local and (path.exists() or name.startswith(("package:", ".", "/", "~")) or name.count("/") > 1):
        raise UsageError(f"processor: the folder {name} does not exist. Expected a folder or a Hub id.")
    source = Source(
        name=public_folder_name(path) if local else name,
        path=str(path) if local else name,
        trust_remote_code=trust_remote_code,
    )
    return load_processor(source, processor_class)


def tokenizer_of(source: Source) -> Any:
    """Return the tokenizer of a model, or None where it has none."""
    try:
        return load_processor(source)
    except UsageError:
        return None


def pixels_from(source: Source, model_class: type[PreTrainedModel], processor: Any = None) -> int | list[int] | None:
    """Return the size of the images that a model's processor makes; None where it reads no images or has no processor.

    Args:
        source: Resolved source of the model.
        model_class: Class of the model.
        processor: Its processor, where it is loaded already.

    Returns:
        One side in pixels, or height and width.
    """
    if model_class.main_input_name != "pixel_values":
        return None
    try:
        return processor_size(processor if processor is not None else load_processor(source, "AutoImageProcessor"))
    except UsageError:  # such a model can be measured, though not trained
        return None
