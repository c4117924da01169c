import threading

import pytest
import torch
from transformers import AutoConfig, AutoModel, BertModel

from hf_pe.calibration import Stop, blockwise_passes
from hf_pe.dummies.inputs import example_inputs
from hf_pe.dummies.outputs import no_cache
from hf_pe.dummies.tiny import randomize_weights_, tiny


def batches(model, count=3):
    return [example_inputs(model, seed=seed) for seed in range(count)]


@pytest.mark.parametrize("name", ["bert", "llama", "gemma3_text", "t5", "whisper"])
def test_what_waits_is_what_a_plain_pass_has(name):
    config = tiny(AutoConfig.for_model(name), depth=True)
    model = randomize_weights_(AutoModel.from_config(config))
    blocks = [n for n, m in model.named_modules() if isinstance(m, torch.nn.ModuleList) and len(m) > 1]
    stack = next(b for b in blocks if "decoder" in b or "layer" in b)
    stops = [Stop(f"{stack}.1", after=False), Stop(f"{stack}.1", after=True)]
    inputs = batches(model)
    with blockwise_passes(model, inputs, stops) as reached:
        entered, left = list(reached)
    for number, batch in enumerate(inputs):
        calls = []
        hook = model.get_submodule(f"{stack}.1").register_forward_hook(lambda m, a, o, s=calls: s.append((a, o)))
        with torch.no_grad():
            model(**batch, **no_cache(model))
        hook.remove()
        first = lambda o: o[0] if isinstance(o, tuple) else o  # noqa: E731
        assert torch.equal(entered[number].args[0], calls[0][0][0])
        assert torch.equal(first(left[number].output), first(calls[0][1]))


def test_a_change_at_a_door_reaches_what_comes_behind(bert_folder):
    model = BertModel.from_pretrained(bert_folder).eval()
    before, after = Stop("encoder.layer.1", after=False), Stop("encoder.layer.1", after=True)
    outputs = []
    for factor in (1.0, 0.5):
        with blockwise_passes(model, batches(model), [before, after]) as reached:
            next(reached)
            model.encoder.layer[1].output.dense.weight.data *= factor
            outputs.append(next(reached)[0].output)
    assert not torch.allclose(outputs[0], outputs[1])


def test_an_error_in_the_model_comes_out_and_no_thread_stays(bert_folder):
    model = BertModel.from_pretrained(bert_folder)
    model.train()
    model.encoder.layer[0].register_forward_hook(lambda *_: 1 / 0)
    with (
        pytest.raises(ZeroDivisionError),
        blockwise_passes(model, batches(model), [Stop("encoder.layer.1", True)]) as reached,
    ):
        next(reached)
    assert not any(type(t).__name__ == "_Pass" for t in threading.enumerate())
    assert model.training
    assert not model.encoder.layer[1]._forward_hooks
