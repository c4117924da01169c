"""What a run reads is known, so that no output replaces it."""

from hf_pe import BackboneSwap, Distillation
from hf_pe.checkpoints.source import resolve
from hf_pe.run.inputs import local_inputs


def test_teachers_backbones_and_caches_are_inputs(bert_folder, tmp_path):
    steps = [
        BackboneSwap(to=str(bert_folder)),
        BackboneSwap(to="mobilenet_v1_0.25"),
        Distillation(teachers=[{"model": str(bert_folder)}], cache={"folder": str(tmp_path / "cache")}),
    ]
    read = local_inputs(resolve("someone/model"), steps, ["texts"])
    assert read == {
        f"the backbone {bert_folder.name}": bert_folder,
        f"the teacher {bert_folder.name}": bert_folder,
        "distil.cache": tmp_path / "cache",
    }
