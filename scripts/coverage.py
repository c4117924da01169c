"""Verifies the axes of every model type that AutoModel knows, on tiny models.

For each type these are the bare model and, without --bare, its class for each task: a head can do more with the hidden
states than read them (T5's divides them by the root of their width). A row is verified where it is for all classes.

The script writes docs/architectures.json (rows {model_type, axis, status, reason, native}, and the classes of rows with
heads) and docs/architectures.md.

    python scripts/coverage.py [--processes 2] [--seconds 300] [--update] [--bare] [TYPE ...]

With types, it prints their rows and writes nothing, unless --update replaces the rows of these types. It names every
axis that is verified in the docs and not in this run, and then exits with status 1.
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
"""Smallest number of types that should be verified, by kind of axis; heads alone or with their key-value groups."""
LAYERS = 6
"""Largest number of layers of a stack whose depth is verified."""
TYPES_A_PROCESS = 100
"""Number of types after which a process is replaced."""
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
"""Config values by model type without which its default config builds no model."""


class TooLong(BaseException):
    """The block inside `within` took too long."""


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raise `TooLong` where the block takes more than `seconds`."""

    def stop(*_: Any) -> None:
        raise TooLong(f"more than {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def head_classes(config: PretrainedConfig) -> list[Any]:
    """Return the classes of a type for the tasks of hf_pe, each once, without the bare model's."""
    mappings = [getattr(transformers, task.auto_class)._model_mapping for task in TASKS.values()]
    classes = [mapping[type(config)] for mapping in mappings if type(config) in mapping]
    bare = AutoModel._model_mapping[type(config)]
    return [*dict.fromkeys(each for each in classes if each != bare and not isinstance(each, tuple))]


def with_heads(config: PretrainedConfig, bare_rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of a bare model, refused where the same cut of a class with a head is refused.

    Each row names the classes with a head. Whether a model still generates with fewer layers in one tower depends on
    the other tower; recipes check that with both.
    """
    classes = []
    for model_class in head_classes(config):
        try:
            axes = {axis.name: axis for axis in discover(config, model_class).axes}
        except Exception:  # the class needs more config values, so no row names it
            continue
        classes.append(model_class)
        for bare_row in bare_rows:
            if bare_row["status"] == "verified" and bare_row["axis"] in axes:
                axis = axes[bare_row["axis"]]
                verification = verify_cut(config, model_class, axis, generates=not axis.kind.is_depth)
                if not verification.holds:
                    reason = f"{model_class.__name__}: {verification.reason}"
                    bare_row |= row(bare_row["model_type"], axis.name, "refused", reason, bare_row["native"])
    return [bare_row | {"classes": [model_class.__name__ for model_class in classes]} for bare_row in bare_rows]


def rows(model_type: str, seconds: int, *, heads: bool = True) -> list[dict[str, Any]]:
    """Return one row for each axis of a type, or one without an axis where no model can be built.

    Args:
        model_type: of transformers.
        seconds: that the type may take.
        heads: verify the classes with heads too.
    """
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)

    axis_rows: list[dict[str, Any]] = []
    try:
        with within(seconds):
            config = AutoConfig.for_model(model_type, **NEEDED.get(model_type, {}))
            classes = AutoModel._model_mapping[type(config)]
            model_class = classes[0] if isinstance(classes, tuple) else classes
            config = shallow(config)
            for axis in discover(config, model_class).axes:
                verification = verify_cut(config, model_class, axis)
                status = "verified" if verification.holds else "refused"
                axis_rows.append(row(model_type, axis.name, status, verification.reason, axis.native))
            axis_rows = with_heads(config, axis_rows) if heads else axis_rows
    except (Exception, TooLong) as error:
        reason = f"{type(error).__name__}: {error}"
        if not axis_rows:
            return [row(model_type, None, "cannot_build", reason, False)]
        axis_rows.append(row(model_type, None, "refused", reason, False))
    no_axis = row(model_type, None, "refused", "no field of its config is known to state the size of an axis", False)
    return axis_rows or [no_axis]


def timed(model_type: str, seconds: int, heads: bool) -> tuple[list[dict[str, Any]], float]:
    """Return the rows of a type, and the seconds that they took."""
    start = time.perf_counter()
    return rows(model_type, seconds, heads=heads), time.perf_counter() - start


def rows_by_type(
    types: list[str], seconds: int, processes: int, heads: bool
) -> Iterator[tuple[str, list[dict[str, Any]], float]]:
    """Yield every type with its rows and the seconds that they took, in the order in which they are finished.

    A process is replaced after `TYPES_A_PROCESS` types, which frees its memory, and where it died.
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
            if not took or number % TYPES_A_PROCESS == 0:
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
    """Return one row of the file; its reason is without addresses and paths, which differ from run to run."""
    reason = re.sub(r"/\S+/", "", re.sub(r"0x[0-9a-f]+", "0x", " ".join(reason.split())))[:300]
    return {"model_type": model_type, "axis": axis, "status": status, "reason": reason, "native": native}


def shallow(config: PretrainedConfig) -> PretrainedConfig:
    """Return a config with at most `LAYERS` layers in each stack whose depth is one number."""
    for field, value in config.to_dict().items():
        part = vars(config).get(field)
        if isinstance(part, PretrainedConfig):
            setattr(config, field, shallow(part))
        elif AXIS_OF_FIELD.get(field) == "layers" and isinstance(value, int) and value > LAYERS:
            keep_layers_(config, value, [*range(LAYERS)])
            setattr(config, field, LAYERS)
    return type(config).from_dict(config.to_dict())


def kind(axis: str) -> str:
    """Return the name of an axis without its tower."""
    return axis.rpartition(".")[2]


def verified_types(all_rows: list[dict[str, Any]]) -> dict[str, int]:
    """Return the number of types with at least one verified tower, by axis; heads with or without key-value groups."""
    types: dict[str, set[str]] = {axis: set() for axis in AXES}
    for each in all_rows:
        if each["status"] == "verified":
            types["heads" if kind(each["axis"]) == "kv_groups" else kind(each["axis"])].add(each["model_type"])
            if kind(each["axis"]) == "kv_groups":
                types["kv_groups"].add(each["model_type"])
    return {axis: len(names) for axis, names in types.items()}


def lost_axes(old_rows: list[dict[str, Any]], new_rows: list[dict[str, Any]]) -> list[str]:
    """Return type and axis of each row that was verified and is no longer, with the new reason, for the types run."""
    new = {(each["model_type"], each["axis"]): each for each in new_rows}
    types = {each["model_type"] for each in new_rows}
    lost = []
    for each in old_rows:
        after = new.get((each["model_type"], each["axis"]), {"status": "absent", "reason": "no such row"})
        if each["model_type"] in types and each["status"] == "verified" != after["status"]:
            lost.append(f"{each['model_type']} {each['axis']}: {after['reason']}")
    return lost


def page(all_rows: list[dict[str, Any]], run: str) -> str:
    """Return the text of docs/architectures.md."""
    counts, types = verified_types(all_rows), sorted({each["model_type"] for each in all_rows})
    signs = {"verified": "yes", "refused": "no", "cannot_build": "-"}
    lines = [
        "# Architectures",
        "",
        f"`AutoModel` of transformers {transformers.__version__} knows {len(types)} model types. The first table "
        "counts those whose cut along an axis is verified: a tiny model of the type with some units cut out gives the "
        "same outputs as with these units ablated, and a cut that is wrong on purpose does not. Of several towers, one "
        "is enough to be counted; [architectures.json](architectures.json) has a row for each tower, with the reason "
        "where a cut is refused.",
        "",
        f"Made by `python scripts/coverage.py` ({run}).{classes_note(all_rows)}",
        "",
        "| axis | types verified | goal |",
        "| --- | --- | --- |",
        *(f"| {axis} | {counts[axis]} | {GOALS.get(axis, '')} |" for axis in AXES),
        "",
        "`heads` counts types whose query heads can be cut with a stock config, alone or with their key-value groups. "
        f"Types of which no model could be built: {sum(each['status'] == 'cannot_build' for each in all_rows)}.",
        "",
        f"| type | {' | '.join(AXES)} |",
        f"| --- | {' | '.join('---' for _ in AXES)} |",
    ]
    for name in types:
        own_rows = [each for each in all_rows if each["model_type"] == name]
        if own_rows[0]["status"] == "cannot_build":
            lines.append(f"| {name} | " + " | ".join("-" for _ in AXES) + " |")
            continue
        cells = []
        for axis in AXES:
            states = Counter(signs[e["status"]] for e in own_rows if e["axis"] and kind(e["axis"]) == axis)
            cells.append("yes" if states.keys() == {"yes"} else "some" if "yes" in states else "no" if states else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def classes_note(all_rows: list[dict[str, Any]]) -> str:
    """Return a sentence on the classes that the rows hold for: the bare models, or those with heads too."""
    with_classes = sorted({each["model_type"] for each in all_rows if "classes" in each})
    if len(with_classes) == len({each["model_type"] for each in all_rows}):
        return " A row holds for the bare model and for each class of the type that a task of hf_pe loads."
    names = ", ".join(f"`{name}`" for name in with_classes) or "none"
    return (
        " A row holds for the bare model, as `AutoModel` builds it. Rows of these types were made later and hold for "
        f"every class that a task of hf_pe loads: {names}."
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("types", nargs="*", help="model types; default: all")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seconds", type=int, default=300, help="that one type may take")
    parser.add_argument("--bare", action="store_true", help="leave out the classes of tasks")
    parser.add_argument("--update", action="store_true", help="replace the rows of TYPE in the docs")
    arguments = parser.parse_args()
    types = arguments.types or sorted({config.model_type for config in AutoModel._model_mapping})
    start, all_rows = time.perf_counter(), list[dict[str, Any]]()
    for name, new, seconds in rows_by_type(types, arguments.seconds, arguments.processes, not arguments.bare):
        all_rows += new
        print(f"{time.perf_counter() - start:.0f} s {name} ({seconds:.1f} s)", flush=True)
        for line in new if arguments.types else []:
            print(f"    {line['axis']}: {line['status']} {line['reason']}")
    old_rows = json.loads((DOCS / "architectures.json").read_text("utf-8"))
    lost = lost_axes(old_rows, all_rows)
    run = f"{datetime.date.today().isoformat()}, {(time.perf_counter() - start) / 60:.1f} minutes, {platform.machine()}"
    if arguments.update:
        old_page = (DOCS / "architectures.md").read_text("utf-8")
        run = re.search(r"coverage\.py` \((.*?)\)", old_page)[1]
        all_rows += [each for each in old_rows if each["model_type"] not in types]
    all_rows.sort(key=lambda each: (each["model_type"], each["axis"] or ""))
    print(verified_types(all_rows))
    if arguments.update or not arguments.types:
        lines = ",\n".join(json.dumps(each, ensure_ascii=False) for each in all_rows)
        (DOCS / "architectures.json").write_text(f"[\n{lines}\n]\n", "utf-8")
        (DOCS / "architectures.md").write_text(page(all_rows, run), "utf-8")
    if lost:
        raise SystemExit("\n".join(["No longer verified:", *lost]))


if __name__ == "__main__":
    main()
