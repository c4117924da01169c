"""Renumbers tokens, layers and heads in configs and generation configs after a cut.

The number of a removed unit leaves the list that it is in; where a field cannot do without it, the cut is refused.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

POSITIONS = ("_indexes", "_indices", "_idxs", "_layers", "_layer_ids", "_layer_indices")
"""Endings of fields that name layers by number (mllama's cross attention, SAM's global attention)."""

TOKENS = ("token_id", "token_ids", "token_index", "suppress_tokens")
"""Endings of fields that hold token ids."""

TIMESTAMPS = "no_timestamps_token_id"
"""The token id before Whisper's timestamps, of which each is 20 ms later than the one before."""

NewIds = Mapping[int, int]
"""Maps the old ids of kept tokens to their new ones."""


class TokenGoneError(Exception):
    """A token that a field cannot do without is not kept; the argument is its id."""


def _id(value: Any, new_ids: NewIds) -> Any:
    """Return the new id; a value that is no id (None, -1 for "none") stays as it is."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        return value
    if value not in new_ids:
        raise TokenGoneError(value)
    return new_ids[value]


def _kept_ids(value: list[Any], new_ids: NewIds) -> list[Any]:
    """Return the new ids of the kept tokens in a list."""
    return [_id(token, new_ids) for token in value if _is_kept(token, new_ids)]


def _is_kept(value: Any, new_ids: NewIds) -> bool:
    """Return whether all ids in a value, lists of lists too, are kept."""
    if isinstance(value, (list, tuple)):
        return all(_is_kept(item, new_ids) for item in value)
    return not isinstance(value, int) or value < 0 or value in new_ids


def _required(value: Any, new_ids: NewIds) -> Any:
    """Renumber one id, or a list of ids of which at least one has to be kept."""
    if not isinstance(value, list):
        return _id(value, new_ids)
    kept = _kept_ids(value, new_ids)
    if value and not kept:
        raise TokenGoneError(value[0])
    return kept


def _suppressed(value: Any, new_ids: NewIds) -> Any:
    """Renumber tokens that must not be generated; removed ones cannot be."""
    return _kept_ids(value, new_ids) if isinstance(value, list) else value


def _sequences(value: Any, new_ids: NewIds) -> Any:
    """Renumber sequences that must not be generated, except those with a removed token; None where none remain."""
    kept = [[_id(i, new_ids) for i in ids] for ids in value or () if _is_kept(ids, new_ids)]
    return kept or None


def _biases(value: Any, new_ids: NewIds) -> Any:
    """Renumber sequences of ids with their biases, as a dict or (in JSON) as pairs."""
    pairs = value.items() if isinstance(value, dict) else value or ()
    kept = [([_id(i, new_ids) for i in ids], bias) for ids, bias in pairs if _is_kept(ids, new_ids)]
    if not kept:
        return None
    return {tuple(ids): bias for ids, bias in kept} if isinstance(value, dict) else [[ids, bias] for ids, bias in kept]


def _forced(value: Any, new_ids: NewIds) -> Any:
    """Renumber the tokens in pairs of a position and the token that is forced there."""
    return value and [[position, _id(token, new_ids)] for position, token in value]


def _words(value: Any, new_ids: NewIds) -> Any:
    """Renumber sequences that must be generated, or lists of alternatives of which one must be."""

    def word(ids: list[Any]) -> list[Any]:
        if not ids or isinstance(ids[0], int):
            return [_id(i, new_ids) for i in ids]
        return _sequences(ids, new_ids) or [word(ids[0])]  # raises with the token that is not kept

    return value and [word(ids) for ids in value]


def _by_name(value: Any, new_ids: NewIds) -> Any:
    """Renumber a dict from names (of languages, tasks) to ids, without the names of removed tokens."""
    if not isinstance(value, dict):
        return value
    return {name: _id(i, new_ids) for name, i in value.items() if _is_kept(i, new_ids)}


RENUMBERINGS: dict[str, Callable[[Any, NewIds], Any]] = {
    "suppress_tokens": _suppressed,
    "begin_suppress_tokens": _suppressed,
    "bad_words_ids": _sequences,
    "sequence_bias": _biases,
    "forced_decoder_ids": _forced,
    "force_words_ids": _words,
    "lang_to_id": _by_name,
    "task_to_id": _by_name,
    "text_decoder_lang_to_code_id": _by_name,
    "composer_to_feature_token": _by_name,
}
"""The function that renumbers a field, for fields that hold neither one id nor a list of them."""


def _renumbering(field: str) -> Callable[[Any, NewIds], Any] | None:
    """Return the function that renumbers the token ids in `field`; None where it holds none."""
    return RENUMBERINGS.get(field) or (_required if field.endswith(TOKENS) else None)


def names_tokens(field: str) -> bool:
    """Return whether a field of a config, or generation config, holds token ids."""
    return _renumbering(field) is not None


def tokens_named(values: Mapping[str, Any]) -> set[int]:
    """Return the token ids that the fields of a config, or generation config, name."""
    named: set[int] = set()

    class Recorder(dict[int, int]):
        """Keep every id as it is, and record it."""

        def __contains__(self, token: object) -> bool:
            return True

        def __missing__(self, token: int) -> int:
            named.add(token)
            return token

    for name, value in values.items():
        if (renumber := _renumbering(name)) is not None:
            renumber(value, Recorder())
    return named


def renumber_tokens(values: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """Return the fields of a config, or generation config, that name tokens, with their token ids after a cut.

    Args:
        values: by field.
        kept: the rows of the vocabulary that are kept, rising.

    Returns:
        New values by field; None for a field that names no kept token any more.

    Raises:
        ValueError: a token that a field requires is not kept, or Whisper's timestamps would no longer be in order.
    """
    new_ids, new = {old_id: new_id for new_id, old_id in enumerate(kept)}, {}
    for name, value in values.items():
        if (renumber := _renumbering(name)) is not None and value is not None:
            try:
                new[name] = renumber(value, new_ids)
            except TokenGoneError as gone:
                raise ValueError(
                    f"{name} {gone} is not among the {len(kept)} rows of the vocabulary that are kept"
                ) from None
    first = values.get(TIMESTAMPS)
    later = [unit - first - 1 for unit in kept if unit > first] if isinstance(first, int) else []
    if later != [*range(len(later))]:
        raise ValueError(
            f"The rows of the vocabulary after {TIMESTAMPS} {first} are timestamps in order. Expected the kept ones to "
            "be the first of them without a gap, or none."
        )
    return new


def renumber_(holder: Any, kept: Sequence[int]) -> None:
    """Change the token ids that a config names to their indices in `kept`; see `renumber_tokens`."""
    for name, value in renumber_tokens(holder.to_dict(), kept).items():
        setattr(holder, name, value)


def renumber_layers(values: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """Return the fields of a generation config that name layers, with the layers' numbers after a cut of depth.

    Pairs of a layer and a head (Whisper's `alignment_heads`) are removed with their layer.

    Args:
        values: by field.
        kept: the layers that are kept, rising.

    Returns:
        New values by field; None for a field that names no kept layer any more.
    """
    positions = {old: new for new, old in enumerate(kept)}
    new: dict[str, Any] = {}
    if pairs := values.get("alignment_heads"):
        new["alignment_heads"] = [[positions[layer], head] for layer, head in pairs if layer in positions] or None
    if isinstance(numbers := values.get("dola_layers"), list):
        new["dola_layers"] = [positions[layer] for layer in numbers if layer in positions] or None
    if isinstance(count := values.get("assistant_early_exit"), int):
        new["assistant_early_exit"] = sum(layer < count for layer in kept) or None
    return new


def drop_alignment_heads(values: Mapping[str, object], kept: Sequence[int]) -> dict[str, object]:
    """Return None for the field of a generation config that names heads, since a cut of heads changes their numbers."""
    return {"alignment_heads": None} if values.get("alignment_heads") else {}


def change_(generation_config: GenerationConfig, changes: Mapping[str, Any]) -> None:
    """Set the new values of fields.

    A field without a value that is not one of every generation config (Whisper's `alignment_heads`) is removed, so that
    transformers reports it as missing.

    Args:
        generation_config: is changed.
        changes: new values by field.
    """
    standard_fields = vars(GenerationConfig())
    for name, value in changes.items():
        if value is None and name not in standard_fields:
            delattr(generation_config, name)
        else:
            setattr(generation_config, name, value)


def rows_in_place(model: PreTrainedModel, tables: set[str]) -> int:
    """Return how many of the first rows of the vocabulary have to keep their token id.

    RoBERTa and its relatives count positions from the id of the padding token, and M2M-100 gives padding no sinusoidal
    position: a module other than the table of tokens then holds `padding_idx` itself.

    Args:
        model: on the meta device is enough.
        tables: names of the modules that hold the rows.
    """
    others = (m for name, m in model.named_modules() if name not in tables and not isinstance(m, PreTrainedModel))
    padding_ids = (vars(module).get("padding_idx") for module in others)
    return max((number + 1 for number in padding_ids if isinstance(number, int)), default=0)


def keep_layers_(holder: Any, count: int, kept: list[int]) -> None:
    """Keep the entries of the kept layers in the fields that describe layers one by one.

    These are lists with one entry a layer, lists of layer numbers, and dicts by layer number.

    Args:
        holder: the config or sub-config of the layers; is changed.
        count: number of layers before.
        kept: indices of the kept layers, rising.
    """
    positions = {old: new for new, old in enumerate(kept)}
    for key, value in holder.to_dict().items():
        if names_tokens(key):  # token ids, as many as there are layers by chance
            continue
        if isinstance(value, list) and len(value) == count:
            setattr(holder, key, [value[i] for i in kept])
        elif key.endswith(POSITIONS) and _numbers(value, count):
            setattr(holder, key, [positions[i] for i in value if i in positions])
        elif by_layer(value):
            settings = {int(name): layer_settings for name, layer_settings in value.items()}
            setattr(holder, key, {str(new): settings[old] for new, old in enumerate(kept) if old in settings})
    if len(vars(holder).get("stage_names") or ()) == count + 1:  # the config of a backbone whose layers are its stages
        ends = [sum(old < i for old in kept) for i in holder._out_indices]
        holder._out_indices = sorted({max(end, 1) for end in ends})
        holder.stage_names = ["stem", *(f"stage{i + 1}" for i in range(len(kept)))]
        holder._out_features = [holder.stage_names[i] for i in holder._out_indices]


def _numbers(value: Any, count: int) -> bool:
    """Return whether a value of a config is a list of layer numbers."""
    return isinstance(value, list) and all(type(i) is int and 0 <= i < count for i in value)


def by_layer(value: Any) -> bool:
    """Return whether a value is a dict from layer numbers to settings: Gemma 4's `per_layer_config`, not `id2label`."""
    if not isinstance(value, dict) or not value:
        return False
    return all(str(key).isdigit() and isinstance(settings, dict) for key, settings in value.items())
