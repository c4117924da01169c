"""Loading what users name, saving, and the proof that what was saved loads again without hf_pe."""

import functools
import hashlib
import importlib.util
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Container, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from huggingface_hub import snapshot_download
from pydantic import Field
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    FeatureExtractionMixin,
    ImageProcessingMixin,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.integrations.gguf.reader import GgufHeader
from transformers.models.auto import modeling_auto
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import TRANSFORMERS_DYNAMIC_MODULE_NAME, cached_file, get_checkpoint_shard_files

import hf_pe.plugin  # noqa: F401  so that from_pretrained knows the form
from hf_pe import progress
from hf_pe.adapters import PREFIX, adapter_settings, adapters_aside, fit_config_, merged, read_adapter
from hf_pe.anatomy import skeleton
from hf_pe.checkpoints.config_checks import require_buildable, require_memory, require_possible_sizes
from hf_pe.checkpoints.mixed_dtypes import differing_dtypes, float32_places, kept_in_float32, put_back_
from hf_pe.checkpoints.sentence_transformers import (
    MODULES,
    PROMPTS,
    TOKENIZATION,
    SentenceModules,
    copy_modules,
    is_sentence_folder,
    module_folders,
    read_modules,
    read_sentence_modules,
    require_width,
)
from hf_pe.checkpoints.weight_checks import (
    ignored_by_class,
    require_finite,
    require_present,
    require_shapes,
    unread_parts,
)
from hf_pe.dummies.inputs import difference, processor_size
from hf_pe.errors import UsageError, explained, listed, one_line, pass_on_memory_errors
from hf_pe.files.json_files import AGAIN, read_object
from hf_pe.files.own_files import (
    LICENCES,
    carried_files,
    code_files,
    is_licence,
    left_behind_sentence,
    require_own,
    require_own_files,
    require_own_shards,
    without_missing_code_,
)
from hf_pe.files.shards import open_shard, require_whole
from hf_pe.fresh.run import run_fresh
from hf_pe.hub_errors import hub_reason
from hf_pe.loading import Loading, ProcessorClass
from hf_pe.padding import classifies_rows_alone, name_padding_, padding_id
from hf_pe.plans import Frozen
from hf_pe.quantizers.bnb import (
    BITSANDBYTES,
    keep_savable_,
    packed,
    packed_by,
    plain_layout_,
    remember_scales_,
    unpacked,
)
from hf_pe.surgery import dtype_name, in_dtype, main_dtype

LOADERS = {
    "pixel_values": "AutoImageProcessor",
    "input_values": "AutoFeatureExtractor",
    "input_features": "AutoFeatureExtractor",
}
"""What makes a model's inputs, by the name of its main one; else a tokenizer."""
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""What PEFT writes."""
WEIGHT_FILES = (".safetensors", ".safetensors.index.json")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
TRAINING_PICKLES = ("training_args", "optimizer", "scheduler", "rng_state", "scaler")
"""How names of pickles begin that hold no weights of the model."""
NO_ACCELERATOR = {"CUDA_VISIBLE_DEVICES": "", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
"""Variables under which a process has the CPU alone: packed weights go to an accelerator by themselves, where there is
one, and not every one lets them go back."""
SIDE_FILES = (MODULES, PROMPTS, *TOKENIZATION)
"""What lies beside a model, its licence besides, and no tokenizer or model writes."""


Dtype = Literal["float32", "bfloat16", "float16"]


class Source(Frozen):
    """A model as the user named it, resolved.

    Attributes:
        name: what may be printed: a Hub id or a name, never a path.
        path: folder or Hub id that transformers can load from.
        spec: what the user wrote, where that tells nothing about this machine.
        gguf_file: file inside it, or None.
        adapter: folder of a PEFT adapter that is merged into the model, or None.
        dtype: of the weights once they are loaded; None: see `loaded_dtype`.
    """

    name: str
    path: str
    spec: str | None = None
    gguf_file: str | None = None
    adapter: str | None = None
    dtype: Dtype | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False

    @property
    def loaded_dtype(self) -> torch.dtype | None:
        """The dtype of the weights once they are loaded; None: that which the checkpoint is stored in.

        A .gguf file that is quantized becomes bfloat16: float32 would take twice the bytes and hold nothing more.
        """
        if self.dtype is not None:
            return getattr(torch, self.dtype)  # type: ignore[no-any-return]
        if self.gguf is None:
            return None
        return GgufHeader.from_file(str(self.gguf)).dtype or torch.bfloat16

    @property
    def gguf(self) -> Path | None:
        """The .gguf file, where it is one."""
        return Path(self.path, self.gguf_file) if self.gguf_file else None

    @property
    def folder(self) -> Path | None:
        """The local folder, or None for a Hub id or a model that was never saved."""
        return Path(self.path) if self.path and Path(self.path).is_dir() else None

    def inputs(self) -> dict[str, Path]:
        """Return the local paths that it is read from, by what they are: no output may touch them."""
        base = "the adapter's base" if self.adapter else "the model"
        read = {base: Path(self.path, self.gguf_file or "")} if self.folder else {}
        return read | ({"the adapter": Path(self.adapter)} if self.adapter else {})

    def beside(self) -> Path | None:
        """Where the small files beside its weights lie: the folder; for a Hub id a snapshot of them; else None.

        Raises:
            UsageError: a module's folder lies outside of the model's own.
        """
        if self.folder is not None or self.spec is None:
            return self.folder
        try:
            return _small_files(self.path)
        except UsageError:
            raise
        except (OSError, ValueError):  # what loads the model will say why
            return None

    def options(self) -> dict[str, Any]:
        """Arguments for `from_pretrained`."""
        gguf = {"gguf_file": self.gguf_file} if self.gguf_file else {}
        return {"trust_remote_code": self.trust_remote_code, **gguf}


def resolve(
    model: str, *, dtype: Dtype | None = None, trust_remote_code: bool = False, allow_pickle: bool = False
) -> Source:
    """Find what `model` names: a folder (of a PEFT adapter perhaps), a .gguf file, `package:NAME/inner/path`, a Hub id.

    Raises:
        UsageError: nothing there, no config in it, pickled weights or custom code without leave; or a link or a name in
            its files leads out of its folder.
    """
    path = _package_path(model) if model.startswith("package:") else Path(model).expanduser()
    spec = model if model.startswith("package:") or not path.exists() else None
    flags: dict[str, Any] = {
        "dtype": dtype,
        "trust_remote_code": trust_remote_code,
        "allow_pickle": allow_pickle,
        "spec": spec,
    }
    if path.suffix == ".gguf" and path.is_file():
        return _checked_gguf(Source(name=path.stem, path=str(path.parent), gguf_file=path.name, **flags))
    if not path.is_dir():
        if path.exists():
            raise UsageError(f"Model {model} is a file; expected a folder, a .gguf file or a Hub id.")
        if model.startswith(("package:", ".", "/", "~")) or model.count("/") > 1:
            raise UsageError(f"Model folder {model} does not exist. Expected a folder, a .gguf file or a Hub id.")
        return Source(name=model, path=model, **flags)
    if not model.startswith("package:"):  # an installer may have put links there
        require_own_files(path)
    if (path / ADAPTER).is_file() and not (path / "config.json").is_file():
        return _adapted(path, dtype=dtype, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
    source = Source(name=_folder_name(path), path=str(path), gguf_file=_only_gguf(path), **flags)
    if source.gguf_file:
        return _checked_gguf(source)
    _check_folder(path, source)
    return source


def load_config(source: Source) -> PretrainedConfig:
    """Read the config, no weights; of a model with an adapter that of the merged model, whose weights are plain.

    Raises:
        UsageError: it cannot be had: no network, no such id, custom code, no config; or an adapter that cannot be
            merged.
    """
    if source.folder and not source.gguf_file and not source.trust_remote_code:
        _refuse_remote_code(source)
    with _reading(source):
        config: PretrainedConfig = AutoConfig.from_pretrained(source.path, **source.options())
    named = config.architectures or []
    if not isinstance(named, list) or not all(isinstance(each, str) for each in named):
        raise UsageError(
            f"{source.name}: config.json has architectures: {named!r:.80}; expected a list of names. {AGAIN}"
        )
    require_possible_sizes(config, source.name)
    if not source.trust_remote_code:
        _refuse_kernels(config, source.name)
    if source.gguf_file:
        _forget_gguf(config)
    if source.loaded_dtype is not None:
        config.dtype = source.loaded_dtype
    if source.adapter is not None:
        _fit_adapter_(config, source)
    return config


def class_for(config: PretrainedConfig, auto_class: str | None = None) -> type[PreTrainedModel]:
    """The concrete class: of `auto_class` if given, else the one the checkpoint names, else AutoModel's.

    A config that came with code of its own, which was allowed when it was loaded, has its class there.

    Raises:
        UsageError: transformers has no such model, or the values of the config do not fit together.
    """
    found = _class_named(config, auto_class)
    if not brings_code(found):
        require_buildable(config, found)
    return found


def _class_named(config: PretrainedConfig, auto_class: str | None) -> type[PreTrainedModel]:
    own: dict[str, str] = config.auto_map if brings_code(type(config)) else {}
    named = (config.architectures or [""])[0]
    if auto_class is None:
        auto_class = next((auto for auto, place in own.items() if place.rpartition(".")[2] == named), None)
        stock = getattr(transformers, named, None)
        if auto_class is None and isinstance(stock, type) and issubclass(stock, PreTrainedModel):
            return stock
        auto_class = auto_class or "AutoModel"
    if auto_class in own:
        found: Any = get_class_from_dynamic_module(
            own[auto_class], config._name_or_path, revision=getattr(config, "_commit_hash", None)
        )
        found.register_for_auto_class(auto_class)  # so that its code is saved beside its weights
        config.register_for_auto_class()
        return found  # type: ignore[no-any-return]
    mapping = getattr(transformers, auto_class)._model_mapping
    if type(config) not in mapping:
        raise UsageError(
            f"A '{config.model_type}' model has no {auto_class}: choose another task. Without data, hf-pe cut, hf-pe "
            "quantize and hf-pe export keep its own class."
        )
    known = mapping[type(config)]
    return known[0] if isinstance(known, tuple) else known  # type: ignore[no-any-return]


def brings_code(kind: type) -> bool:
    """Whether a class of a model or a config is code that a checkpoint brought along."""
    return kind.__module__.startswith(f"{TRANSFORMERS_DYNAMIC_MODULE_NAME}.")


def auto_class_of(config: PretrainedConfig, model_class: type[PreTrainedModel]) -> str:
    """The auto class that makes `model_class` of `config`, such as AutoModelForImageClassification.

    Raises:
        UsageError: none does.
    """
    if brings_code(model_class):
        return str(model_class._auto_class)
    named = [name for name in modeling_auto.__all__ if name.startswith("AutoModelFor")] + ["AutoModel"]
    for name in named:
        found = getattr(getattr(transformers, name), "_model_mapping", {}).get(type(config), ())
        if model_class in (found if isinstance(found, tuple) else (found,)):
            return name
    raise UsageError(f"{model_class.__name__} is no class that an auto class of transformers loads.")


def load_model(
    source: Source,
    model_class: type[PreTrainedModel],
    *,
    new_head: bool = False,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> PreTrainedModel:
    """Load the weights, evaluation mode; see `load_with_unread`."""
    return load_with_unread(source, model_class, new_head=new_head, dtype=dtype, **options)[0]


def load_with_unread(
    source: Source,
    model_class: type[PreTrainedModel],
    *,
    new_head: bool = False,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """Load the weights, evaluation mode, and list what the model leaves unread.

    Of a decoder that classifies texts the config names a padding token afterwards, so that it takes several rows.

    Args:
        source: resolved.
        model_class: what to build.
        new_head: what the checkpoint lacks, or has in another shape, is random in place of refused.
        dtype: of the weights; default: `loaded_dtype` of the source.
        options: further arguments of `from_pretrained`; with a `config` of the caller's own, what it leaves out of the
            checkpoint is left out on purpose. Of an adapter or a .gguf file, `quantization_config` is for the plain
            model that comes of it, which is held whole.

    Returns:
        The model, and the parts of the checkpoint that it does not read: another task's head, or what transformers
        leaves out.

    Raises:
        UsageError: they cannot be loaded, the class has parts the checkpoint lacks (an untrained head) or has in other
            shapes, the checkpoint has more of a module than the class, or a value is NaN or infinite.
    """
    if source.folder is not None and (source.folder / ADAPTER).is_file():
        adapter_settings(source.path)  # of one beside the model's own weights, which transformers loads unasked
    _require_loadable(source, model_class, dtype or source.loaded_dtype, options)
    if "quantization_config" in options:  # packing hides what is not finite
        require_finite(_stored_tensors(source), source.name)
    safe = {} if source.gguf_file else {"use_safetensors": None if source.allow_pickle else True}
    loader: Any = model_class
    dtype = dtype or source.loaded_dtype
    made_plain = source.adapter is not None or source.gguf is not None
    packing = options.pop("quantization_config", None) if made_plain else None
    with _reading(source):
        model, info = loader.from_pretrained(
            source.path,
            dtype=torch.float32 if source.gguf else dtype or "auto",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, with their shapes
            **source.options(),
            **safe,
            **options,
        )
    unexpected = [*info["unexpected_keys"], *ignored_by_class(_stored_names(source), model)]
    unread = unread_parts(unexpected, model, source.name, strict="config" not in options)
    missing, mismatched = info["missing_keys"], info["mismatched_keys"]
    if source.gguf is not None:
        assert dtype is not None
        model = _plain_gguf(model, dtype)
    if source.adapter is not None:
        model, brought = _merged(model, source, dtype)
        missing, mismatched = missing - brought, {each for each in mismatched if each[0] not in brought}
    if not new_head:
        require_shapes(mismatched, model, source.name)
        require_present(missing, model, source.name)
    require_finite(model.state_dict().items(), source.name)
    if dtype is None and "quantization_config" not in options:
        _keep_float32_(model, source)
    if packing is not None:
        model = packed(model, packing, dtype)
    if classifies_rows_alone(model.config, model_class):
        name_padding_(model.config, padding_id(model.config, _tokenizer_of(source)))
    remember_scales_(model)
    keep_savable_(model)
    return model.eval(), unread


def _require_loadable(
    source: Source, model_class: type[PreTrainedModel], dtype: torch.dtype | None, options: Mapping[str, Any]
) -> None:
    """Refuse damaged weight files, and a model that this machine cannot hold, before memory is asked for.

    Raises:
        UsageError: for these reasons.
    """
    if source.folder is not None and not source.gguf_file:
        require_whole(source.folder)
    if brings_code(model_class) or "device_map" in options:
        return
    config = options.get("config") or load_config(source)
    packs = "quantization_config" in options or packed_by(config) is not None
    rounded = torch.float32 if source.gguf is not None else dtype
    bits = 4 if packs else None if rounded is None else torch.finfo(rounded).bits
    require_memory(config, model_class, source.name, bits=bits)


def weight_files(source: Source) -> list[str]:
    """The safetensors files that `from_pretrained` reads; none for GGUF and pickles."""
    if source.gguf_file:
        return []
    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    whole = cached_file(source.path, SAFE_WEIGHTS_NAME, **quiet)
    if whole is not None:
        return [whole]
    index = cached_file(source.path, SAFE_WEIGHTS_INDEX_NAME, **quiet)
    if index is not None:
        require_own_shards(Path(index).parent, Path(index))
    return [] if index is None else list(get_checkpoint_shard_files(source.path, index)[0])


def _stored_names(source: Source) -> Iterator[str]:
    for path in weight_files(source):
        with open_shard(path) as file:
            yield from file.keys()


def _stored_tensors(source: Source, names: Container[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
    for path in weight_files(source):
        with open_shard(path) as file:
            for name in file.keys():  # noqa: SIM118
                if names is None or name in names:
                    yield name, file.get_tensor(name)


def _keep_float32_(model: PreTrainedModel, source: Source) -> None:
    """Put float32 tensors back that loading has rounded, in a model that is loaded in the dtype of its files."""
    if source.adapter is None and packed_by(model.config) is None:
        places = float32_places(_stored_dtypes(source), model, main_dtype(model))
        put_back_(model, ((places[name], tensor) for name, tensor in _stored_tensors(source, places)))


def rounding_warnings(
    source: Source, config: PretrainedConfig, model_class: type[PreTrainedModel], model: PreTrainedModel | None = None
) -> tuple[str, ...]:
    """Return a sentence where a part of the tensors is stored in float32, and the loaded model is in 16 bits.

    Args:
        source: of a checkpoint.
        config, model_class: what is loaded.
        model: what was loaded, where it was: what it holds in float32 was not rounded.
    """
    loaded: Any = source.loaded_dtype or config.dtype
    loaded = getattr(torch, loaded) if isinstance(loaded, str) else loaded
    if loaded not in (torch.bfloat16, torch.float16) or packed_by(config) is not None or source.adapter is not None:
        return ()
    stored, template = _stored_dtypes(source), skeleton(config, model_class)
    keeps = kept_in_float32(template, loaded)
    own = differing_dtypes(model) if model is not None else {}
    held = {name for name, place in float32_places(stored, template, loaded).items() if place in own}
    rounded = sorted(name for name, dtype in stored.items() if dtype == "F32" and not keeps(name) and name not in held)
    if not rounded or source.dtype is not None or len(rounded) == len(stored):
        return ()
    short = dtype_name(loaded)
    return (
        f"{len(rounded)} of {len(stored)} tensors ({listed(rounded)}) are "
        f"stored in float32 and become {short}, the config's dtype, as transformers loads them. `dtype: float32` keeps "
        "them and makes all others as large.",
    )


def _stored_dtypes(source: Source) -> dict[str, str]:
    """Return the dtype of each tensor in the files, as safetensors calls it."""
    found: dict[str, str] = {}
    for path in weight_files(source):
        with open_shard(path) as file:
            found |= {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    return found


def load_processor(source: Source, main_input: str = "input_ids") -> Any:
    """Load what makes the model's inputs: its tokenizer, image processor or feature extractor, else its processor.

    Args:
        source: resolved.
        main_input: `main_input_name` of the model's class.

    Raises:
        UsageError: the model comes with none.
    """
    first = LOADERS.get(main_input, "AutoTokenizer")
    places = [source.path] if source.adapter is None else [source.adapter, source.path]
    reasons: list[Exception] = []
    for name, place in itertools.product(dict.fromkeys((first, "AutoTokenizer", "AutoProcessor")), places):
        try:
            found = getattr(transformers, name).from_pretrained(place, **source.options())
            if not _knows_no_word(found):
                return found
            reasons.append(OSError("its tokenizer knows no word but the special tokens: its files are not there"))
        except Exception as error:  # a damaged file may raise anything
            pass_on_memory_errors(error)
            reasons.append(error)
    raise UsageError(
        f"{source.name} has no tokenizer or processor that transformers can load: {_brief(reasons[0])}. Put its files "
        "beside the weights (tokenizer.json, preprocessor_config.json and the like), or name another one's."
    )


def _knows_no_word(processor: Any) -> bool:
    """Return whether a tokenizer was made from nothing: transformers makes one where a folder has no files for it."""
    if not isinstance(processor, PreTrainedTokenizerBase):
        return False
    try:
        words = processor.get_vocab().keys()
    except NotImplementedError:
        return False
    return not words - set(processor.all_special_tokens)


def load_named_processor(name: str, main_input: str = "input_ids", *, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer or processor of another folder or id than the model's.

    Args:
        name: folder, Hub id or `package:NAME/inner/path`.
        main_input: `main_input_name` of the model's class.
        trust_remote_code: run code that it brings along.

    Raises:
        UsageError: there is none.
    """
    path = _package_path(name) if name.startswith("package:") else Path(name).expanduser()
    local = path.is_dir()
    if not local and (path.exists() or name.startswith(("package:", ".", "/", "~")) or name.count("/") > 1):
        raise UsageError(f"processor: the folder {name} does not exist. Expected a folder or a Hub id.")
    source = Source(
        name=_folder_name(path) if local else name,
        path=str(path) if local else name,
        trust_remote_code=trust_remote_code,
    )
    return load_processor(source, main_input)


def _tokenizer_of(source: Source) -> Any:
    """Return the tokenizer, None where there is none."""
    try:
        return load_processor(source)
    except UsageError:
        return None


def pixels_from(source: Source, model_class: type[PreTrainedModel], processor: Any = None) -> int | list[int] | None:
    """Return the size of the images that a model's processor gives it; None where it reads none, or comes with none.

    Args:
        source: resolved.
        model_class: what reads them.
        processor: where it is loaded already.
    """
    if model_class.main_input_name != "pixel_values":
        return None
    try:
        return processor_size(processor if processor is not None else load_processor(source, "pixel_values"))
    except UsageError:  # measured without one, trained never
        return None


def is_sentence_transformer(source: Source) -> bool:
    """Return whether the source carries sentence-transformers' side files."""
    return is_sentence_folder(source.beside())


def sentence_modules(source: Source) -> SentenceModules:
    """Return what sentence-transformers does behind this model; the mean over its tokens where it is no such model.

    Raises:
        UsageError: it pools in a way, or has a module, that is not known.
    """
    beside = source.beside()
    if beside is None or not is_sentence_folder(beside):
        return SentenceModules()
    return read_sentence_modules(beside, allow_pickle=source.allow_pickle)


def require_sentence_width(source: Source, config: PretrainedConfig) -> None:
    """Refuse a hidden width that the source's dense layer does not read; see `sentence_files.require_width`."""
    beside = source.beside()
    if beside is not None:
        require_width(beside, getattr(config, "hidden_size", None))


def save_model(model: PreTrainedModel, processor: Any, folder: Path, source: Source | None = None) -> None:
    """Write weights, config, processor and the source's side files (pooling, licence) into `folder`; beside the weights
    the adapters that lie in the model."""
    folder.mkdir(parents=True, exist_ok=True)
    plain_layout_(model)
    name_or_path = model.config._name_or_path
    model.config._name_or_path = ""
    if getattr(model, "_hf_peft_config_loaded", False):
        model.save_pretrained(folder)  # the adapters alone
    with adapters_aside(model):
        model.save_pretrained(folder)
    model.config._name_or_path = name_or_path
    if differing_dtypes(model):  # save_pretrained writes the dtype of the first parameter
        _write_dtype(folder / "config.json", main_dtype(model))
    if processor is not None:
        processor.save_pretrained(folder)
        _forget_paths(folder)
    for item in _side_files(source):
        shutil.copyfile(item, folder / item.name)
    beside = source.beside() if source else None
    if beside is not None:
        copy_modules(beside, folder, getattr(model.config, "hidden_size", None))


def _write_dtype(config: Path, dtype: torch.dtype) -> None:
    """State in config.json in which dtype `from_pretrained` loads the weights."""
    content = read_object(config)
    config.write_text(json.dumps({**content, "dtype": dtype_name(dtype)}, indent=2, sort_keys=True) + "\n", "utf-8")


def copy_beside(folder: Path, fresh: Path, config: PretrainedConfig, *, own_code: bool = False) -> None:
    """Copy what a model has beside the weights in `folder` into `fresh`, where it has no file of that name.

    See `own_files.carried_files` for what that is, and `say_left_behind`.

    Args:
        folder: of the original.
        fresh: of the result.
        config: of the result.
        own_code: the user allows the code that the original brings along.

    Raises:
        UsageError: a link leads out of the folder.
    """
    for path in carried_files(folder, own_code=own_code):
        target = fresh / path.relative_to(folder)
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
    if not own_code:
        without_missing_code_(fresh)
    copy_modules(folder, fresh, getattr(config, "hidden_size", None))


def say_left_behind(source: Source) -> None:
    """Name to the user what lies in the original's folder and is no part of a model: it is not taken along.

    Of a .gguf file nothing is said: it is the model, whatever lies beside it.
    """
    folders = [source.folder, Path(source.adapter) if source.adapter else None]
    for folder in folders if source.gguf_file is None else ():
        if folder is not None and (sentence := left_behind_sentence(folder, own_code=source.trust_remote_code)):
            progress.say(sentence)


def weight_bytes_on_disk(folder: Path) -> int:
    """Bytes of the weight files in `folder`."""
    return sum(p.stat().st_size for p in folder.iterdir() if p.suffix in (".safetensors", ".gguf", *PICKLES))


def weight_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of config.json and of every weight file in `folder`, those of sentence-transformers' modules too: what
    decides a model's outputs."""
    names = ("config.json", SAFE_WEIGHTS_INDEX_NAME)
    paths = [p for p in folder.iterdir() if p.suffix == ".safetensors" or p.name in names]
    paths += [p for module in module_folders(folder) for p in (folder / module).glob("*.safetensors")]
    found = {}
    for path in sorted(paths):
        with path.open("rb") as file:
            found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def loading_for(auto_class: str, processor: Any, *, plugin: bool = False, own_code: bool = False) -> Loading:
    """Return how a result is loaded; the card prints it as lines, the reload check calls the same classes.

    Args:
        auto_class: that makes the model.
        processor: its tokenizer or the like, or None.
        plugin: it has the plug-in form.
        own_code: it has code of its own, which has to be allowed.
    """
    kinds: dict[ProcessorClass, type] = {
        "AutoTokenizer": PreTrainedTokenizerBase,
        "AutoImageProcessor": ImageProcessingMixin,
        "AutoFeatureExtractor": FeatureExtractionMixin,
    }
    known = next((loader for loader, kind in kinds.items() if isinstance(processor, kind)), "AutoProcessor")
    loader: Any = None if processor is None else known
    return Loading(auto_class=auto_class, processor_class=loader, plugin=plugin, trust_remote_code=own_code)


class Seen(Frozen):
    """What a fresh process saw of a folder.

    Attributes:
        parameters: their number.
        peak_memory_bytes: of loading and one forward pass, above the imports; weights that stay mapped included.
        max_difference: largest relative difference of the outputs to those expected; None where none were.
        hashes: SHA-256 of each tensor that the model saves, by name.
    """

    parameters: int
    peak_memory_bytes: int | None
    max_difference: float | None
    hashes: dict[str, str] = Field(default_factory=dict, repr=False)


def open_in_fresh_process(
    folder: Path,
    loading: Loading,
    inputs: dict[str, torch.Tensor],
    expected: list[torch.Tensor] | None,
    device: torch.device | None = None,
) -> Seen:
    """Load `folder` in a process that imports hf_pe only for the plug-in form, and run one forward pass on `inputs`.

    Args:
        folder: what to load.
        loading: by which classes.
        inputs: keyword arguments of the model.
        expected: outputs to compare with, or None.
        device: where the loaded model runs: the same kernels give the same outputs; default: where it was loaded.

    Raises:
        RuntimeError: it does not load or run; carries the process's own last words.
    """
    with tempfile.TemporaryDirectory() as work:
        save_file({k: v.contiguous().cpu() for k, v in inputs.items()}, Path(work, "inputs.safetensors"))
        order = {**loading.model_dump(), "folder": str(folder.resolve()), "device": str(device or "")}
        Path(work, "order.json").write_text(json.dumps(order), "utf-8")
        on_cpu = device is not None and device.type == "cpu"
        hidden = NO_ACCELERATOR if on_cpu and torch.accelerator.is_available() else {}
        run_fresh("fresh_process.py", work, f"{folder.name} does not load in a fresh process", hidden)
        seen = json.loads(Path(work, "seen.json").read_text("utf-8"))
        outputs = load_file(Path(work, "outputs.safetensors"))
    found = [outputs[str(i)] for i in range(len(outputs))]
    gap = None if expected is None else difference([e.cpu() for e in expected], found)
    return Seen(**seen, max_difference=gap)


def _adapted(folder: Path, **flags: Any) -> Source:
    """The base that an adapter names, with it."""
    base = read_object(folder / ADAPTER).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UsageError(f"{folder} is an adapter that does not say of which model; load both and merge them first.")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise UsageError(f"{folder} has no {ADAPTER_WEIGHTS}; expected what PEFT's save_pretrained writes.")
    if str(base).startswith("package:"):
        raise UsageError(
            f"{folder.name}/{ADAPTER} names {base} as its base model; expected a folder or a Hub id. Set "
            "base_model_name_or_path to where the base model lies."
        )
    if (Path(base) / ADAPTER).is_file() and not (Path(base) / "config.json").is_file():
        raise UsageError(
            f"{folder.name}/{ADAPTER} names another adapter ({base}) as its base model; expected a whole model. Merge "
            "that one into its own base first."
        )
    found = resolve(str(base), **flags)
    return found.model_copy(update={"adapter": str(folder), "name": _folder_name(folder), "spec": None})


def _fit_adapter_(config: PretrainedConfig, source: Source) -> None:
    """Change the config of an adapter's base into that of the merged model."""
    method = packed_by(config)
    if method is not None and method not in BITSANDBYTES:
        raise UsageError(
            f"{source.name} is an adapter on weights that {method} has quantized, which cannot be unpacked. Expected a "
            "base in 16 or 32 bits, or one that bitsandbytes has quantized: name another in base_model_name_or_path."
        )
    if method is not None:
        del config.quantization_config
    fit_config_(config, skeleton(config, class_for(config)), read_adapter(str(source.adapter)))


def _merged(model: PreTrainedModel, source: Source, dtype: torch.dtype | None) -> tuple[PreTrainedModel, set[str]]:
    """The plain model with an adapter merged, and the names of what the adapter holds."""
    adapter = read_adapter(str(source.adapter))
    own = dtype or main_dtype(model)
    plain = unpacked(model, torch.float32) if packed_by(model.config) is not None else model
    brought = {name.removeprefix(PREFIX) for name in adapter.state}
    return in_dtype(merged(plain, adapter), own), brought


def _package_path(model: str) -> Path:
    package, _, inner = model.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None  # of a dotted name it imports a part
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(f"Model {model}: no Python package '{package}' is installed here; install it with pip.")
    return Path(next(iter(spec.submodule_search_locations))) / inner


def _folder_name(path: Path) -> str:
    """A name for a folder that tells nothing about this machine."""
    absolute = path.resolve()
    return absolute.parent.name if absolute.name in ("model", "models", "checkpoint") else absolute.name


def _only_gguf(path: Path) -> str | None:
    found = sorted(p.name for p in path.glob("*.gguf"))
    if (path / "config.json").is_file() or not found:
        return None
    if len(found) > 1:
        raise UsageError(f"{path} has several GGUF files: {', '.join(found)}. Name one: {path / found[0]}.")
    return found[0]


def _check_folder(path: Path, source: Source) -> None:
    read_modules(path)
    if not (path / "config.json").is_file():
        raise UsageError(
            f"Model folder {path} has no config.json; expected what save_pretrained writes, or a .gguf file."
        )
    names = [p.name for p in path.iterdir()]
    pickled = [n for n in names if n.endswith(PICKLES) and not n.startswith(TRAINING_PICKLES)]
    if pickled and not any(n.endswith(WEIGHT_FILES) for n in names) and not source.allow_pickle:
        raise UsageError(
            f"{path} has its weights as pickle ({pickled[0]}), which can run code when loaded. Convert them to "
            "safetensors, or allow it with allow_pickle: true (--allow-pickle) if you trust where they come from."
        )


def _checked_gguf(source: Source) -> Source:
    """Return the source of a .gguf file whose header can be read.

    Raises:
        UsageError: it cannot.
    """
    with _reading(source):
        GgufHeader.from_file(str(source.gguf))
    return source


def _forget_gguf(config: PretrainedConfig) -> None:
    """GGUF says it is quantized, but the weights are dequantized while loading; and it names no class."""
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    if not config.architectures and type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        config.architectures = [class_for(config, "AutoModelForCausalLM").__name__]


def _plain_gguf(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a .gguf file as any other; it is loaded in float32 and rounded once."""
    whole: Any = model
    _forget_gguf(model.config)
    whole.is_quantized, whole.hf_quantizer = False, None
    return in_dtype(model, dtype)


def _refuse_remote_code(source: Source) -> None:
    found = read_object(Path(source.path) / "config.json")
    kind, code = found.get("model_type"), found.get("auto_map")
    known = isinstance(kind, str) and kind in transformers.CONFIG_MAPPING
    if isinstance(code, dict) and not known:
        raise UsageError(
            f"{source.name} needs its own code ({', '.join(sorted(code))}), which is off. Read that code, "
            "then allow it with trust_remote_code: true (--trust-remote-code)."
        )
    if not known:
        raise UsageError(f"{source.name}: config.json has model_type {kind!r}, which transformers does not know.")


def _reading(source: Source) -> AbstractContextManager[None]:
    """Turn whatever a library raises while it reads a model's files into a message; see `errors.explained`."""
    return explained(lambda error: _why(source, error))


def _refuse_kernels(config: PretrainedConfig, name: str) -> None:
    """Refuse a config that names attention kernels of the Hub: transformers would fetch them and run their code."""
    parts = [part for part in vars(config).values() if isinstance(part, PretrainedConfig)]
    for part in (config, *parts):
        asked = getattr(part, "_attn_implementation", None)
        if "/" in str(asked or ""):
            raise UsageError(
                f"{name}: config.json asks for the attention kernels {asked} of the Hub, which are code. Remove "
                "attn_implementation there, or allow it with trust_remote_code: true (--trust-remote-code)."
            )


def _why(source: Source, error: Exception) -> str:
    if source.folder is None:
        return (
            f"Model {source.path} could not be had from the Hub, and is no folder here: {hub_reason(error)}. Check the "
            "spelling, the network, and `hf auth login` for private models."
        )
    return (
        f"{source.name} cannot be loaded: {_brief(error)}. Its files are damaged, or not all of them are there: "
        "download the folder again, or save it again with save_pretrained."
    )


def _brief(error: BaseException) -> str:
    """Return what an error says in one line; its type where it says little by itself."""
    text = one_line(error, 400).rstrip(". ")
    return f"{type(error).__name__}: {text}" if isinstance(error, KeyError) or len(text) < 20 else text


@functools.cache
def _small_files(repo: str) -> Path:
    """A snapshot of what lies beside the weights of a Hub id, fetched once."""
    place = Path(snapshot_download(repo, allow_patterns=[*SIDE_FILES, *LICENCES]))
    folders = module_folders(place)
    return Path(snapshot_download(repo, allow_patterns=[f"{name}/*" for name in folders])) if folders else place


def _side_files(source: Source | None) -> list[Path]:
    folder = source.beside() if source else None
    if folder is None:
        return []
    named = [path for path in sorted(folder.iterdir()) if path.name in SIDE_FILES or is_licence(path.name)]
    found = [require_own(folder, path) for path in named if path.is_file()]
    return found + (code_files(folder) if source and source.trust_remote_code else [])


def _forget_paths(folder: Path) -> None:
    """A saved tokenizer repeats where it was loaded from: keep this machine's paths out of what is published."""
    for file in (folder / "tokenizer_config.json", folder / "processor_config.json"):
        if file.is_file():
            content = json.loads(file.read_text("utf-8"))
            for key in ("name_or_path", "_name_or_path"):
                if os.sep in str(content.get(key, "")) and Path(str(content[key])).exists():
                    del content[key]
            file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
