"""Cut forty architectures by half with hf_pe and with Torch-Pruning, and check what works afterwards.

    python scripts/bench/reach_peers.py [TYPE ...]

A small model with randomized weights stands for each type, and each library has half a minute for it. hf_pe calls
`cut_checkpoint` on a folder, along those of FFN width, heads (or key-value groups) and hidden width that it verifies.
Torch-Pruning is set up as in its examples for language models, BERT and ViT: it removes half of all channels and heads
by group magnitude, reads the heads from the query, key and value layers, and ignores the output head; then the script
writes the new sizes to the modules' attributes and to the config.

Four checks follow: the model runs; it has fewer query heads, of the same size, and the config counts them correctly;
tied embeddings are still tied; and the saved model is loaded by stock `from_pretrained` without missing, unexpected or
mismatched tensors and computes the same outputs.
"""

import argparse
import copy
import re
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import transformers
from common import row, write
from coverage import TooLong, within
from torch import nn
from transformers import AutoConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_pe import cut_checkpoint
from hf_pe.anatomy import discover
from hf_pe.dummies.inputs import example_inputs
from hf_pe.dummies.outputs import difference, no_cache, outputs_of, tensors_of
from hf_pe.dummies.tiny import randomize_weights_, tiny_configs
from hf_pe.verify.equivalence import verify_cut

TYPES = [
    "albert", "bart", "bert", "bloom", "clip_vision_model", "deberta-v2", "deepseek_v3", "deit", "dinov2", "distilbert",
    "electra", "falcon", "gemma", "gemma3_text", "gpt2", "gpt_neox", "gpt_oss", "hubert", "llama", "mamba", "mistral",
    "mixtral", "modernbert", "mpnet", "olmo2", "opt", "phi3", "qwen2", "qwen3", "qwen3_moe", "roberta",
    "siglip_vision_model", "smollm3", "stablelm", "starcoder2", "swin", "t5", "vit", "wav2vec2", "whisper",
]  # fmt: skip
CLASSES = (
    "AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModelForSeq2SeqLM", "AutoModelForImageClassification",
    "AutoModelForSpeechSeq2Seq", "AutoModel",
)  # fmt: skip
"""Each type uses the first of these classes that supports it; classes whose output head may be tied come first."""
QUERIES = r"(^|\.)(q_proj|query|query_proj|q_lin|q|in_proj|qkv|qkv_proj|query_key_value|c_attn|Wqkv|W_pack)$"
"""Pattern of the names of the layers that compute queries, alone or with keys and values."""
CHECKS = ("runs", "heads", "ties", "reloads")
SECONDS = 30
"""Time limit of each library for each type; cutting a tiny model takes two or three seconds."""


def model_of(model_type: str) -> PreTrainedModel:
    """Return the smallest model of a type that runs, with randomized weights."""
    for config, _ in tiny_configs(AutoConfig.for_model(model_type)):
        mapping = next(m for name in CLASSES if type(config) in (m := getattr(transformers, name)._model_mapping))
        classes = mapping[type(config)]
        model: PreTrainedModel = randomize_weights_(
            (classes[0] if isinstance(classes, tuple) else classes)(copy.deepcopy(config))
        )
        try:
            outputs_of(model, example_inputs(model))
        except Exception:  # not every config says which of its sizes have to agree
            continue
        return model
    raise ValueError(model_type)


def query_rows(model: nn.Module) -> list[int]:
    """Return the output widths of the layers that compute queries."""
    maps = [m for name, m in model.named_modules() if re.search(QUERIES, name) and isinstance(m, (nn.Linear, Conv1D))]
    return [m.out_features if isinstance(m, nn.Linear) else m.nf for m in maps]


def heads(model: Any) -> int:
    """Return the number of query heads in the config, or 0 if it has none."""
    counts = [getattr(config, name, None) for config in (model.config.get_text_config(), model.config)
              for name in ("num_attention_heads", "n_head", "num_heads", "encoder_attention_heads")]  # fmt: skip
    return next((int(count) for count in counts if isinstance(count, int)), 0)


def checked(before: PreTrainedModel, after: Any, inputs: dict[str, torch.Tensor]) -> dict[str, bool]:
    """Return which of the checks the cut model `after` passes."""
    results = dict.fromkeys(CHECKS, False)
    tied = before.get_output_embeddings() is not None and (
        before.get_output_embeddings().weight is before.get_input_embeddings().weight
    )
    try:
        outputs = outputs_of(after, inputs)
        results["runs"] = all(bool(torch.isfinite(each).all()) for each in outputs)
    except Exception as error:
        print(f"    does not run: {type(error).__name__}: {str(error)[:120]}")
        return results
    wide, narrow, old, new = query_rows(before), query_rows(after), heads(before), heads(after)
    same_size = (
        bool(wide) and len(wide) == len(narrow) and all(b * old == a * new for a, b in zip(wide, narrow, strict=True))
    )
    results["heads"] = 0 < new < old and same_size
    if tied:
        results["ties"] = after.get_output_embeddings().weight is after.get_input_embeddings().weight
    with tempfile.TemporaryDirectory() as folder:
        try:
            after.save_pretrained(folder)
            again, info = type(after).from_pretrained(folder, output_loading_info=True)
            problems = [kind for kind, names in info.items() if kind.endswith("keys") and names]
            results["reloads"] = not problems and difference(outputs, outputs_of(again.eval(), inputs)) < 1e-6
        except Exception as error:
            print(f"    does not reload: {type(error).__name__}: {str(error)[:120]}")
    return results


def by_hf_pe(model: PreTrainedModel) -> Any:
    """Cut along each axis that `verify_cut` confirms, and load the result."""
    keep: dict[str, float] = {}
    axes = [axis for axis in discover(model.config, type(model)).axes if axis.native and axis.size > 1]
    for kind in ("ffn", "kv_groups", "heads", "hidden"):
        for axis in (axis for axis in axes if axis.kind.name == kind):
            beside = any(name.rpartition(".")[2] == "kv_groups" for name in keep) and kind == "heads"
            if not beside and verify_cut(model.config, type(model), axis).holds:
                keep[axis.name] = 0.5
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(Path(folder, "model"))
        cut_checkpoint(str(Path(folder, "model")), Path(folder, "small"), keep, round_to=4)
        loader: Any = type(model)
        return loader.from_pretrained(Path(folder, "small")).eval()


def by_torch_pruning(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> Any:  # noqa: C901, PLR0912  one step after the other
    """Cut as the examples of Torch-Pruning do (examples/LLMs, examples/transformers of its repository)."""
    import torch_pruning as tp

    model = copy.deepcopy(model)
    config: Any = model.config.get_text_config()
    count, groups = heads(model), getattr(config, "num_key_value_heads", None)
    head_counts = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, Conv1D)) and re.search(QUERIES, name):
            head_counts[module] = count
        elif isinstance(module, nn.Linear) and re.search(
            r"(^|\.)(k_proj|v_proj|key|value|k_lin|v_lin|k|v|key_proj|value_proj)$", name
        ):
            head_counts[module] = groups if isinstance(groups, int) else count
    ends = [m for m in (model.get_output_embeddings(), getattr(model, "classifier", None)) if isinstance(m, nn.Linear)]
    pruner = tp.pruner.BasePruner(
        model,
        example_inputs=inputs,
        forward_fn=lambda model, inputs: tensors_of(model(**inputs, **no_cache(model)))[0],
        importance=tp.importance.GroupMagnitudeImportance(p=2, group_reduction="mean"),
        global_pruning=False,
        pruning_ratio=0.5,
        head_pruning_ratio=0.5,
        prune_num_heads=True,
        prune_head_dims=False,
        num_heads=head_counts,
        ignored_layers=ends,
    )
    for group in pruner.step(interactive=True):
        group.prune()
    new_counts = {*pruner.num_heads.values()} if head_counts else {count}
    new = max(new_counts)
    for module in model.modules():
        own = next(
            (m for name, m in module.named_children() if re.search(QUERIES, name) and m in pruner.num_heads), None
        )
        if own is None:
            continue
        new = pruner.num_heads[own]
        for name in ("num_attention_heads", "num_heads", "n_heads", "n_head"):
            if isinstance(vars(module).get(name), int):
                setattr(module, name, new)
        wide = own.out_features if isinstance(own, nn.Linear) else own.nf
        for name in ("all_head_size", "embed_dim", "hidden_size", "split_size"):
            if isinstance(vars(module).get(name), int):
                setattr(module, name, wide)
        if isinstance(vars(module).get("num_key_value_groups"), int) and isinstance(groups, int):
            module.num_key_value_groups = max(new // max(groups // 2, 1), 1)
    for name in ("num_attention_heads", "n_head", "num_heads"):
        if isinstance(vars(config).get(name), int):
            setattr(config, name, new)
    if isinstance(groups, int):
        config.num_key_value_heads = new if groups == count else max(groups // 2, 1)
    norms = [m for m in model.modules() if "Norm" in type(m).__name__ and len([*m.parameters()])]
    for name in ("hidden_size", "d_model", "n_embd"):
        if norms and isinstance(vars(config).get(name), int):
            setattr(config, name, next(norms[-1].parameters()).numel())
    widths = [m.out_features for name, m in model.named_modules() if isinstance(m, nn.Linear)
              and re.search(r"(gate_proj|up_proj|fc1|intermediate\.dense|dense_h_to_4h|c_fc)$", name)]  # fmt: skip
    if widths and isinstance(vars(config).get("intermediate_size"), int):
        config.intermediate_size = widths[0]
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("types", nargs="*")
    types = parser.parse_args().types or TYPES
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    ours: dict[str, dict[str, bool]] = {}
    torch_pruning_results: dict[str, dict[str, bool]] = {}
    tied = set()
    for name in types:
        model = model_of(name)
        inputs = example_inputs(model)
        head = model.get_output_embeddings()
        tied |= {name} if head is not None and head.weight is model.get_input_embeddings().weight else set()
        for library, results, cut in (
            ("hf_pe", ours, by_hf_pe),
            ("Torch-Pruning", torch_pruning_results, lambda m, i=inputs: by_torch_pruning(m, i)),
        ):
            try:
                with within(SECONDS):
                    results[name] = checked(model, cut(model), inputs)
            except (Exception, TooLong) as error:
                print(f"    {library} {name}: {type(error).__name__}: {str(error)[:160]}")
                results[name] = dict.fromkeys(CHECKS, False)
            print(f"{name:20} {library:14} {' '.join(k for k, v in results[name].items() if v)}", flush=True)
    if types is not TYPES:
        return
    rows = []
    for check in CHECKS:
        among = sorted(tied) if check == "ties" else TYPES
        ours_pass, torch_pruning_pass = (
            {n for n in among if results[n][check]} for results in (ours, torch_pruning_results)
        )
        not_so = [
            ", ".join(n for n in among if n not in passing) or "none" for passing in (ours_pass, torch_pruning_pass)
        ]
        setting = (
            f"{len(among)} types{' whose embeddings are tied' if check == 'ties' else ''}, small models, half of what "
            f"can be cut, at most {SECONDS} s for each; not so for hf_pe: {not_so[0]}; for Torch-Pruning: {not_so[1]}"
        )
        rows.append(
            row(
                f"reach.peers.{check}",
                len(ours_pass),
                len(torch_pruning_pass),
                "higher",
                "types",
                setting,
                peers={"Torch-Pruning": len(torch_pruning_pass)},
            )
        )
    write("reach_peers", rows)


if __name__ == "__main__":
    main()
