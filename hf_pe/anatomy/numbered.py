"""What configs and generation configs name by number, and its new numbers after a cut: tokens, layers, heads.

A number that stands for a unit that is gone leaves its list; where one has to be there, the cut is refused.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

POSITIONS = ("_indexes", "_indices", "_idxs", "_layers", "_layer_ids", "_layer_indices")
"""How fields end that name layers by their number (mllama's cross attention, SAM's global attention)."""

TOKENS = ("token_id", "token_ids", "token_index", "suppress_tokens")
"""How fields end that hold rows of the vocabulary."""

TIMESTAMPS = "no_timestamps_token_id"
"""The token behind which Whisper's timestamps follow, each 20 ms later than the one before."""

Places = Mapping[int, int]
"""Old token id to new one, for the tokens that are kept."""


class TokenGoneError(Exception):
    """A token that a field cannot do without is not kept: its id."""


def _id(value: Any, places: Places) -> Any:
    """Return the new id; what is no id (None, -1 for "none") stays as it is."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        return value
    if value not in places:
        raise TokenGoneError(value)
    return places[value]


def _kept_ids(value: list[Any], places: Places) -> list[Any]:
    """Return the new ids of those that are kept."""
    return [_id(each, places) for each in value if _is_kept(each, places)]


def _is_kept(value: Any, places: Places) -> bool:
    """Return whether all ids in a value, lists of lists too, are kept."""
    if isinstance(value, (list, tuple)):
        return all(_is_kept(each, places) for each in value)
    return not isinstance(value, int) or value < 0 or value in places


def _required(value: Any, places: Places) -> Any:
    """One id, or a list of ids of which one has to be left."""
    if not isinstance(value, list):
        return _id(value, places)
    kept = _kept_ids(value, places)
    if value and not kept:
        raise TokenGoneError(value[0])
    return kept


def _suppressed(value: Any, places: Places) -> Any:
    """Tokens that are not to come: those that are gone will not."""
    return _kept_ids(value, places) if isinstance(value, list) else value


def _sequences(value: Any, places: Places) -> Any:
    """Lists of ids that are not to come: one with a token that is gone will not. None where no list is left."""
    kept = [[_id(i, places) for i in ids] for ids in value or () if _is_kept(ids, places)]
    return kept or None


def _biases(value: Any, places: Places) -> Any:
    """Lists of ids with their biases, as a dict, or as pairs (what JSON can say)."""
    pairs = value.items() if isinstance(value, dict) else value or ()
    kept = [([_id(i, places) for i in ids], bias) for ids, bias in pairs if _is_kept(ids, places)]
    if not kept:
        return None
    return {tuple(ids): bias for ids, bias in kept} if isinstance(value, dict) else [[ids, bias] for ids, bias in kept]


def _forced(value: Any, places: Places) -> Any:
    """Pairs of a position and the token that has to stand there."""
    return value and [[position, _id(token, places)] for position, token in value]


def _words(value: Any, places: Places) -> Any:
    """Lists of ids that have to come, or lists of such lists of which one has to."""

    def word(ids: list[Any]) -> list[Any]:
        if not ids or isinstance(ids[0], int):
            return [_id(i, places) for i in ids]
        return _sequences(ids, places) or [word(ids[0])]  # which says what is gone

    return value and [word(ids) for ids in value]


def _by_name(value: Any, places: Places) -> Any:
    """Ids by name (of languages, tasks): the names of those that are gone go too."""
    if not isinstance(value, dict):
        return value
    return {name: _id(i, places) for name, i in value.items() if _is_kept(i, places)}


FORMS: dict[str, Callable[[Any, Places], Any]] = {
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
"""How fields hold token ids, where it is not one id or a list of some."""


def _form(name: str) -> Callable[[Any, Places], Any] | None:
    """How the field `name` holds token ids; None where it holds none."""
    return FORMS.get(name) or (_required if name.endswith(TOKENS) else None)


def names_tokens(field: str) -> bool:
    """Return whether a field of a config, or generation config, holds token ids."""
    return _form(field) is not None


def tokens_named(values: Mapping[str, Any]) -> set[int]:
    """Return the token ids that the fields of a config, or generation config, name."""
    named: set[int] = set()

    class Noted(dict[int, int]):
        """Every id is kept, and noted."""

        def __contains__(self, token: object) -> bool:
            return True

        def __missing__(self, token: int) -> int:
            named.add(token)
            return token

    for name, value in values.items():
        if (form := _form(name)) is not None:
            form(value, Noted())
    return named


def renumber_tokens(values: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """Return the fields of a config, or generation config, that name tokens, with the ids these have after a cut.

    Args:
        values: by field.
        kept: the rows of the vocabulary that stay, rising.

    Returns:
        New values by field; None where nothing is left to say.

    Raises:
        ValueError: a token that has to be there is not kept, or Whisper's timestamps would no longer be in order.
    """
    places, new = {unit: place for place, unit in enumerate(kept)}, {}
    for name, value in values.items():
        if (form := _form(name)) is not None and value is not None:
            try:
                new[name] = form(value, places)
            except TokenGoneError as gone:
                raise ValueError(
                    f"{name} {gone} is not among the {len(kept)} rows of the vocabulary that are kept"
                ) from None
    first = values.get(TIMESTAMPS)
    later = [unit - first - 1 for unit in kept if unit > first] if isinstance(first, int) else []
    if later != [*range(len(later))]:
        raise ValueError(
            f"The rows after {TIMESTAMPS} {first} are timestamps in order; expected the first of them up to any, or "
            "none."
        )
    return new


def renumber_(holder: Any, kept: Sequence[int]) -> None:
    """Change the token ids that a config names to their places in `kept`; see `renumber_tokens`."""
    for name, value in renumber_tokens(holder.to_dict(), kept).items():
        setattr(holder, name, value)


def renumber_layers(values: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """Return the fields of a generation config that name layers, with their numbers after a cut of depth.

    Pairs of a layer and a head (Whisper's `alignment_heads`) go with their layer. None where nothing is left to say.
    """
    places = {old: new for new, old in enumerate(kept)}
    new: dict[str, Any] = {}
    if pairs := values.get("alignment_heads"):
        new["alignment_heads"] = [[places[layer], head] for layer, head in pairs if layer in places] or None
    if isinstance(numbers := values.get("dola_layers"), list):
        new["dola_layers"] = [places[layer] for layer in numbers if layer in places] or None
    if isinstance(count := values.get("assistant_early_exit"), int):
        new["assistant_early_exit"] = sum(layer < count for layer in kept) or None
    return new


def drop_alignment_heads(values: Mapping[str, object], kept: Sequence[int]) -> dict[str, object]:
    """Return the fields of a generation config that name heads, with nothing left to say: their numbers have moved."""
    return {"alignment_heads": None} if values.get("alignment_heads") else {}


def change_(generation_config: GenerationConfig, changes: Mapping[str, Any]) -> None:
    """Set new values; what is not of every generation config and has nothing left to say is removed, so that
    transformers says that it is not there."""
    every = vars(GenerationConfig())
    for name, value in changes.items():
        if value is None and name not in every:
            delattr(generation_config, name)
        else:
            setattr(generation_config, name, value)


def rows_in_place(model: PreTrainedModel, tables: set[str]) -> int:
    """Return how many of the first rows of the vocabulary have to keep their place.

    RoBERTa and its relatives count positions from the id of the padding token, and M2M-100 gives padding no sinusoidal
    position: a module other than the table of tokens then holds `padding_idx` itself.

    Args:
        model: on the meta device is enough.
        tables: names of the modules that hold the rows.
    """
    others = (m for name, m in model.named_modules() if name not in tables and not isinstance(m, PreTrainedModel))
    known = (vars(module).get("padding_idx") for module in others)
    return max((number + 1 for number in known if isinstance(number, int)), default=0)


def keep_layers_(holder: Any, count: int, kept: list[int]) -> None:
    """Of what a config says layer by layer, keep the layers `kept`: lists of `count` entries or of numbers of layers,
    dicts by layer."""
    places = {old: new for new, old in enumerate(kept)}
    for key, value in holder.to_dict().items():
        if names_tokens(key):  # token ids, as many as there are layers by chance
            continue
        if isinstance(value, list) and len(value) == count:
            setattr(holder, key, [value[i] for i in kept])
        elif key.endswith(POSITIONS) and _numbers(value, count):
            setattr(holder, key, [places[i] for i in value if i in places])
        elif by_layer(value):
            known = {int(name): each for name, each in value.items()}
            setattr(holder, key, {str(new): known[old] for new, old in enumerate(kept) if old in known})
    if len(vars(holder).get("stage_names") or ()) == count + 1:  # of a backbone: each layer is a stage
        ends = [sum(old < i for old in kept) for i in holder._out_indices]
        holder._out_indices = sorted({max(end, 1) for end in ends})
        holder.stage_names = ["stem", *(f"stage{i + 1}" for i in range(len(kept)))]
        holder._out_features = [holder.stage_names[i] for i in holder._out_indices]


def _numbers(value: Any, count: int) -> bool:
    """Whether a value of a config is a list of numbers of layers."""
    return isinstance(value, list) and all(type(i) is int and 0 <= i < count for i in value)


def by_layer(value: Any) -> bool:
    """Whether a value of a config is a dict from layers to settings (Gemma 4's `per_layer_config`; not `id2label`)."""
    if not isinstance(value, dict) or not value:
        return False
    return all(str(key).isdigit() and isinstance(each, dict) for key, each in value.items())
