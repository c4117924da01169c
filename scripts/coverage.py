"""Which axes of which architectures are proved: every model type that AutoModel knows, shrunk, cut and compared.

Of each type the bare model and, unless --bare is given, its class for each task: a head can do more with the hidden
states than read them (T5's divides them by the root of their width). A row is verified where it is for all of them.

Writes docs/architectures.json (rows {model_type, axis, status, reason, native}, and with heads the classes) and
docs/architectures.md.

    python scripts/coverage.py [--processes 2] [--seconds 300] [--update] [--bare] [TYPE ...]

With types, prints their rows, and with --update puts them in the place of those that are there.
"""

import argparse
import concurrent.futures
import contextlib
import datetime
import json
import multiprocessing
import platform
import queue
import re
import signal
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModel, PretrainedConfig

from hf_pe.anatomy import discover, keep_layers_
from hf_pe.anatomy.fields import AXIS_OF_FIELD
from hf_pe.tasks import TASKS
from hf_pe.verify.equivalence import verify_cut

DOCS = Path(__file__).resolve().parents[1] / "docs"
AXES = ("ffn", "heads", "kv_groups", "layers", "hidden", "vocabulary", "experts", "expert_ffn")
GOALS = {"ffn": 430, "layers": 450, "hidden": 400, "heads": 240, "vocabulary": 340, "experts": 55}
"""Types to be proved on each axis; heads natively, alone or with their key-value groups."""
LAYERS = 6
"""Depth is verified on at most so many."""
AT_ONCE = 100
"""Types that go through one process."""
SERIES = {"prediction_length": 8, "context_length": 8}
NEEDED: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("autoformer", "informer", "time_series_transformer"), SERIES),
    **{name: {"head_dim": 128} for name in ("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral")},
    "chameleon": {"vocabulary_map": {"<image>": 8711, "IMGIMGBSA": 4}},
    "dots1": {"n_routed_experts": 64, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 6},
    "hunyuan_vl": {"text_config": {"head_dim": 128}},
    "hunyuan_vl_text": {"head_dim": 128},
    "aya_vision": {"vision_config": {"model_type": "siglip_vision_model"}},
    "diffusion_gemma": {"text_config": {"num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 704}},
    "t5": {"decoder_start_token_id": 0},
    "esm": {"vocab_size": 33, "mask_token_id": 32, "pad_token_id": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "nemotron": {"num_key_value_heads": 8},
}
"""What a config cannot be made without."""


class TooLong(BaseException):
    """A type took more time than it may."""


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raise `TooLong` where the block takes more time."""

    def stop(*_: Any) -> None:
        raise TooLong(f"more than {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def head_classes(config: PretrainedConfig) -> list[Any]:
    """The classes of a type for the tasks of hf_pe, each once, without the bare model's."""
    mappings = [getattr(transformers, task.auto_class)._model_mapping for task in TASKS.values()]
    found = [mapping[type(config)] for mapping in mappings if type(config) in mapping]
    bare = AutoModel._model_mapping[type(config)]
    return [*dict.fromkeys(each for each in found if each != bare and not isinstance(each, tuple))]


def with_heads(config: PretrainedConfig, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a bare model, refused where the same cut of a class with a head is; each names the classes.

    Whether a model still generates with fewer layers in one tower depends on the other: recipes look at both.
    """
    classes = []
    for model_class in head_classes(config):
        try:
            axes = {axis.name: axis for axis in discover(config, model_class).axes}
        except Exception:  # a class that asks the config for more: it is not among those that are named
            continue
        classes.append(model_class)
        for each in found:
            if each["status"] == "verified" and each["axis"] in axes:
                axis = axes[each["axis"]]
                verification = verify_cut(config, model_class, axis, generates=not axis.kind.is_depth)
                if not verification.holds:
                    reason = f"{model_class.__name__}: {verification.reason}"
                    each |= row(each["model_type"], each["axis"], "refused", reason, each["native"])
    return [each | {"classes": [model_class.__name__ for model_class in classes]} for each in found]


def rows(model_type: str, seconds: int, *, heads: bool = True) -> list[dict[str, Any]]:
    """Of each axis of a type whether its cut is verified; one row without an axis where no model comes of it."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)

    found: list[dict[str, Any]] = []
    try:
        with within(seconds):
            config = AutoConfig.for_model(model_type, **NEEDED.get(model_type, {}))
            classes = AutoModel._model_mapping[type(config)]
            model_class = classes[0] if isinstance(classes, tuple) else classes
            config = shallow(config)
            for axis in discover(config, model_class).axes:
                verification = verify_cut(config, model_class, axis)
                status = "verified" if verification.holds else "refused"
                found.append(row(model_type, axis.name, status, verification.reason, axis.native))
            found = with_heads(config, found) if heads else found
    except (Exception, TooLong) as error:
        reason = f"{type(error).__name__}: {error}"
        if not found:
            return [row(model_type, None, "cannot_build", reason, False)]
        found.append(row(model_type, None, "refused", reason, False))
    return found or [row(model_type, None, "refused", "no field of its config is known to size an axis", False)]


def timed(model_type: str, seconds: int, heads: bool) -> tuple[list[dict[str, Any]], float]:
    """The rows of a type, and the seconds that they took."""
    start = time.perf_counter()
    return rows(model_type, seconds, heads=heads), time.perf_counter() - start


def each(
    types: list[str], seconds: int, processes: int, heads: bool
) -> Iterator[tuple[str, list[dict[str, Any]], float]]:
    """Every type with its rows and the seconds that they took, as they come.

    A process is renewed after `AT_ONCE` types, so that what models leave behind goes, and where one died.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hf_pe.verify.equivalence"])
    waiting, done = iter(types), queue.Queue[tuple[str, list[dict[str, Any]], float]]()

    def work() -> None:
        pool = concurrent.futures.ProcessPoolExecutor(1, context)
        for number, name in enumerate(waiting, 1):
            try:
                new, took = pool.submit(timed, name, seconds, heads).result()
            except Exception as error:
                new, took = [row(name, None, "cannot_build", f"{type(error).__name__}: {error}", False)], 0.0
            done.put((name, new, took))
            if not took or number % AT_ONCE == 0:
                pool.shutdown()
                pool = concurrent.futures.ProcessPoolExecutor(1, context)
        pool.shutdown()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(processes)]
    for thread in threads:
        thread.start()
    for _ in types:
        yield done.get()
    for thread in threads:
        thread.join()


def row(model_type: str, axis: str | None, status: str, reason: str, native: bool) -> dict[str, Any]:
    """One line of the file; reasons without what differs from run to run."""
    reason = re.sub(r"/\S+/", "", re.sub(r"0x[0-9a-f]+", "0x", " ".join(reason.split())))[:300]
    return {"model_type": model_type, "axis": axis, "status": status, "reason": reason, "native": native}


def shallow(config: PretrainedConfig) -> PretrainedConfig:
    """With at most `LAYERS` layers in each stack that one number tells."""
    for field, value in config.to_dict().items():
        part = vars(config).get(field)
        if isinstance(part, PretrainedConfig):
            setattr(config, field, shallow(part))
        elif AXIS_OF_FIELD.get(field) == "layers" and isinstance(value, int) and value > LAYERS:
            keep_layers_(config, value, [*range(LAYERS)])
            setattr(config, field, LAYERS)
    return type(config).from_dict(config.to_dict())


def kind(axis: str) -> str:
    """Without its tower."""
    return axis.rpartition(".")[2]


def verified_types(found: list[dict[str, Any]]) -> dict[str, int]:
    """Types with at least one tower proved, by axis; heads with or without key-value groups."""
    types: dict[str, set[str]] = {axis: set() for axis in AXES}
    for each in found:
        if each["status"] == "verified":
            types["heads" if kind(each["axis"]) == "kv_groups" else kind(each["axis"])].add(each["model_type"])
            if kind(each["axis"]) == "kv_groups":
                types["kv_groups"].add(each["model_type"])
    return {axis: len(names) for axis, names in types.items()}


def page(found: list[dict[str, Any]], run: str) -> str:
    """docs/architectures.md."""
    counts, types = verified_types(found), sorted({each["model_type"] for each in found})
    signs = {"verified": "yes", "refused": "no", "cannot_build": "-"}
    lines = [
        "# Architectures",
        "",
        f"Of the {len(types)} model types that `AutoModel` of transformers {transformers.__version__} knows, how many "
        "have an axis whose cut is verified: a tiny model of the type, with the units ablated, gives the same output "
        "as the model with those units cut out, and a wrong cut is noticed. Where a type has several towers, one of "
        "them is enough here; [architectures.json](architectures.json) has all rows, with the reason where a cut is "
        "refused.",
        "",
        f"Made by `python scripts/coverage.py` ({run}).{headed(found)}",
        "",
        "| axis | types verified | goal |",
        "| --- | --- | --- |",
        *(f"| {axis} | {counts[axis]} | {GOALS.get(axis, '')} |" for axis in AXES),
        "",
        "`heads` counts types whose query heads can be cut natively, alone or with their key-value groups. Types of "
        f"which no model could be built: {sum(each['status'] == 'cannot_build' for each in found)}.",
        "",
        f"| type | {' | '.join(AXES)} |",
        f"| --- | {' | '.join('---' for _ in AXES)} |",
    ]
    for name in types:
        mine = [each for each in found if each["model_type"] == name]
        if mine[0]["status"] == "cannot_build":
            lines.append(f"| {name} | " + " | ".join("-" for _ in AXES) + " |")
            continue
        cells = []
        for axis in AXES:
            states = Counter(signs[e["status"]] for e in mine if e["axis"] and kind(e["axis"]) == axis)
            cells.append("yes" if states.keys() == {"yes"} else "some" if "yes" in states else "no" if states else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def headed(found: list[dict[str, Any]]) -> str:
    """Which types were looked at with their heads too, where that is not all of them."""
    with_classes = sorted({each["model_type"] for each in found if "classes" in each})
    if len(with_classes) == len({each["model_type"] for each in found}):
        return " A row holds for the bare model and for each class of the type that a task of hf_pe loads."
    names = ", ".join(f"`{name}`" for name in with_classes) or "none"
    return (
        " A row is of the bare model, as `AutoModel` builds it. Made later, and with every class that a task of hf_pe "
        f"loads: {names}."
    )


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("types", nargs="*")
    arguments.add_argument("--processes", type=int, default=2)
    arguments.add_argument("--seconds", type=int, default=300, help="that one type may take")
    arguments.add_argument("--bare", action="store_true", help="without the classes of tasks")
    arguments.add_argument("--update", action="store_true")
    told = arguments.parse_args()
    types = told.types or sorted({config.model_type for config in AutoModel._model_mapping})
    start, found = time.perf_counter(), list[dict[str, Any]]()
    for name, new, seconds in each(types, told.seconds, told.processes, not told.bare):
        found += new
        print(f"{time.perf_counter() - start:.0f} s {name} ({seconds:.1f} s)", flush=True)
        for line in new if told.types else []:
            print(f"    {line['axis']}: {line['status']} {line['reason']}")
    run = f"{datetime.date.today().isoformat()}, {(time.perf_counter() - start) / 60:.1f} minutes, {platform.machine()}"
    if told.update:
        page_was = (DOCS / "architectures.md").read_text("utf-8")
        was = json.loads((DOCS / "architectures.json").read_text("utf-8"))
        run = re.search(r"coverage\.py` \((.*?)\)", page_was)[1]
        found += [each for each in was if each["model_type"] not in types]
    found.sort(key=lambda each: (each["model_type"], each["axis"] or ""))
    print(verified_types(found))
    if told.update or not told.types:
        lines = ",\n".join(json.dumps(each, ensure_ascii=False) for each in found)
        (DOCS / "architectures.json").write_text(f"[\n{lines}\n]\n", "utf-8")
        (DOCS / "architectures.md").write_text(page(found, run), "utf-8")


if __name__ == "__main__":
    main()
