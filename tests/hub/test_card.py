import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from hf_pe.data_facts import DataFacts, RowCounts
from hf_pe.errors import UsageError
from hf_pe.hub import render_card, write_card
from hf_pe.hub.metadata import card_data
from hf_pe.hub.pictures import kept_per_layer
from hf_pe.hub.tables import comparison
from hf_pe.plans import Plan, SizeChange
from hf_pe.recipes import RECIPES
from hf_pe.report import (
    BaseModelFacts,
    Latency,
    Measurement,
    MetricChange,
    Reload,
    Report,
    SliceChange,
    StageReport,
)


def measurement(scale=1.0, **changes):
    fields = {
        "parameters": int(1000 * scale),
        "parameters_without_embeddings": int(800 * scale),
        "dtype": "float32",
        "disk_bytes": int(4_000_000 * scale),
        "flops": int(2e9 * scale),
        "flops_setting": "batch 1, length 128",
        "latency": (Latency(batch=1, length=128, threads=2, rounds=9, p50_ms=10 * scale, p90_ms=12 * scale),),
        "peak_memory_bytes": int(5_000_000 * scale),
        "quality": {"spearman": 0.9},
    }
    return Measurement(**{**fields, **changes})


def report(**changes):
    plan = Plan(
        recipe="prune", title="structured pruning", parameters=500, parameters_without_embeddings=400, weight_bytes=2000,
        sizes=(SizeChange(axis="layers", before=3, after=2), SizeChange(axis="ffn", before=8, after=4)),
        kept={"layers": {"encoder.layer": [0, 2]}}, exact=True, references=("https://arxiv.org/abs/2306.11695",),
    )  # fmt: skip
    stage = StageReport(
        plan=plan,
        settings={},
        seconds=1,
        parameters_without_embeddings=400,
        weight_bytes=2_000_000,
        quality={"spearman": 0.8},
    )
    fields = {
        "name": "small",
        "task": "embedding",
        "pipeline_tag": "sentence-similarity",
        "metric": "spearman",
        "metric_description": "`spearman` is a rank correlation.",
        "higher_is_better": True,
        "base": BaseModelFacts(
            id="someone/large", license="mit", language=("en",), model_class="BertModel", model_type="bert"
        ),
        "stages": (stage,),
        "before": measurement(),
        "after": measurement(0.5, quality={"spearman": 0.85}),
        "reload": Reload(status="native", parameters=500, max_difference=0.0),
        "data": DataFacts(train=("a.csv",), eval=None, train_rows=100, eval_rows=20, fingerprint="abc"),
        "machine": "a machine",
        "versions": {"Python": "3"},
        "seed": 0,
        "command": "hf-pe run a.yaml",
        "date": "2026-01-01",
    }
    return Report(**{**fields, **changes})


def test_metadata_is_what_the_hub_client_reads_back():
    card = ModelCard(render_card(report()))
    data = card.data
    assert data.base_model == "someone/large"
    assert data.license == "mit"
    assert data.pipeline_tag == "sentence-similarity"
    assert "pruned" in data.tags
    assert {(r.metric_name, r.metric_value) for r in data.eval_results} == {
        ("spearman (after compression)", 0.85),
        ("spearman (before compression)", 0.9),
    }
    front = yaml.safe_load(render_card(report()).split("---")[1])
    assert front["base_model_relation"] == "finetune"


def test_quantization_alone_is_a_quantized_relation():
    stage = report().stages[0]
    quantized = stage.model_copy(
        update={"plan": stage.plan.model_copy(update={"recipe": "quantize", "changes": "precision"})}
    )
    assert card_data(report(stages=(quantized,))).base_model_relation == "quantized"


def test_a_local_original_is_not_claimed_to_be_on_the_hub():
    base = report().base.model_copy(update={"id": "my-model"})
    assert card_data(report(base=base)).base_model is None
    text = render_card(report(base=base))
    assert "A smaller version of the local model `my-model`, made by" in text and "huggingface.co" not in text


def test_the_name_of_a_folder_that_tells_who_someone_is_stays_out_of_the_card(monkeypatch):
    monkeypatch.setattr("hf_pe.hub.private_facts.getpass.getuser", lambda: "annabel")
    for name in ("annabel", "anna@example.org", "10.1.2.3", "hf_" + "A" * 34):
        base = report().base.model_copy(update={"id": name})
        assert "A smaller version of a local model, made by" in (text := render_card(report(base=base)))
        assert name not in text


def test_an_old_id_of_the_hub_has_no_user():
    """`gpt2` is one where a revision of it was loaded, else a folder."""
    base = report().base.model_copy(update={"id": "gpt2", "revision": "abc"})
    assert card_data(report(base=base)).base_model == "gpt2"
    assert "A smaller version of [gpt2](https://huggingface.co/gpt2), made by" in render_card(report(base=base))


def test_a_figure_of_few_rows_is_no_metadata():
    few = report(data=report().data.model_copy(update={"eval_rows": 19}))
    assert card_data(few).eval_results is None and "model_name" not in card_data(few).to_dict()
    assert "- Quality was measured on 19 rows only: too few for figures that others can rely on." in render_card(few)
    assert len(card_data(report()).eval_results) == 2
    assert "rows only" not in render_card(report())


def test_a_card_names_the_folder_that_the_result_lies_in():
    """With variants each result lies in a folder of its own inside that of the run."""
    reload = report().reload.model_copy(update={"sentence_difference": 0.0})
    text = render_card(report(folder="small/main", reload=reload))
    assert 'AutoModel.from_pretrained("small/main")' in text and '`SentenceTransformer("small/main")`' in text
    loading = report().loading.model_copy(update={"revision": "nf4"})
    pushed = report(name="me/small", reload=reload.model_copy(update={"loading": loading}))
    assert '`SentenceTransformer("me/small", revision="nf4")`' in render_card(pushed)


def test_several_licences_are_a_list():
    several = {"license": "mit, apache-2.0", "licenses": ("mit", "apache-2.0")}
    base = report().base.model_copy(update=several)
    assert yaml.safe_load(render_card(report(base=base)).split("---")[1])["license"] == ["mit", "apache-2.0"]
    one = report().base.model_copy(update={"license": "mit, apache-2.0"})
    assert yaml.safe_load(render_card(report(base=one)).split("---")[1])["license"] == "mit, apache-2.0"
    assert "- Licence of the original: mit, apache-2.0." in render_card(report(base=base))


@pytest.mark.parametrize(
    ("text", "listed"),
    [("mit, apache-2.0", ["mit", "apache-2.0"]), ("mit", "mit"), ("mine, see LICENSE", "mine, see LICENSE")],
)
def test_licences_that_an_older_report_joins_are_a_list_again(text, listed):
    older = report().model_dump(mode="json")
    older["base"]["license"] = text
    del older["base"]["licenses"]
    card = render_card(Report.model_validate(older))
    assert yaml.safe_load(card.split("---")[1])["license"] == listed


def test_a_language_that_looks_like_a_truth_value_stays_a_language():
    base = report().base.model_copy(update={"language": ("no", "en")})
    assert yaml.safe_load(render_card(report(base=base)).split("---")[1])["language"] == ["no", "en"]


def test_a_model_that_derives_from_the_base_is_not_called_it():
    """`base_model` may be what the compressed model was fine-tuned from: the text says which is which."""
    base = report().base.model_copy(update={"compressed": "my-sentiment", "revision": "abc123"})
    text = render_card(report(base=base))
    link = "[someone/large](https://huggingface.co/someone/large)"
    assert f"A smaller version of the local model `my-sentiment`, which derives from {link}, made by" in text
    assert f"The card of {link} applies to this model too, as far as the compressed model still resembles it" in text
    fine_tune = base.model_copy(update={"compressed": "someone/sentiment"})
    assert f"version of someone/sentiment, which derives from {link}, made" in render_card(report(base=fine_tune))
    data = card_data(report(base=base))
    assert (data.base_model, data.base_model_relation, data.base_model_revision) == ("someone/large", "finetune", None)
    stage = report().stages[0]
    quantized = stage.model_copy(
        update={"plan": stage.plan.model_copy(update={"recipe": "quantize", "changes": "precision"})}
    )
    assert card_data(report(base=base, stages=(quantized,))).base_model_relation is None  # of a copy it is "quantized"


def test_bits_on_disk_stand_in_the_table_and_more_bytes_are_no_gain():
    file = measurement(disk_bytes=562)  # a .gguf file of 1000 parameters
    grown = report(before=file, after=measurement(0.5, disk_bytes=1000))
    assert ("Bits per parameter on disk", "4.5", "16.0", "3.56x") in comparison(grown)
    assert "take no fewer bytes on disk than those of the original: 0.0 MB before, 0.0 MB after" in render_card(grown)
    assert "take no fewer bytes" not in render_card(report())


def test_every_number_of_the_table_is_in_the_card():
    text = render_card(report())
    for row in comparison(report()):
        assert f"| {row[0]} | {row[1]} | {row[2]} | {row[3]} |" in text
    assert ("Parameters", "1,000", "500", "0.50x") in comparison(report())
    assert 'model = AutoModel.from_pretrained("small")' in text
    assert "spearman went from 0.9000 to 0.8500" in text
    assert "https://arxiv.org/abs/2306.11695" in text


def test_results_before_and_after_survive_the_hub_clients_round_trip():
    data = ModelCard(render_card(report())).data
    again = model_index_to_eval_results(yaml.safe_load(data.to_yaml())["model-index"])[1]
    assert len(again) == 2
    assert len({r.unique_identifier for r in again}) == 2, "two results, not two metrics of one"
    assert [r.metric_value for r in again] == [0.85, 0.9]


def test_intervals_and_slices_that_got_worse():
    worse = SliceChange(name="label bad", examples=30, before=0.9, after=0.7, low=-0.3, high=-0.1)
    unsure = SliceChange(name="label good", examples=30, before=0.9, after=0.89, low=-0.05, high=0.03)
    change = MetricChange(
        metric="spearman", examples=60, before=0.9, after=0.85, low=-0.08, high=-0.02, slices=(worse, unsure)
    )
    text = render_card(report(changes=(change,)))
    assert "0.94x [-0.0800, -0.0200]" in text
    assert "| label bad | 30 | 0.9000 | 0.7000 | -0.2000 [-0.3000, -0.1000] |" in text
    assert "label good" not in text
    sure = change.model_copy(update={"slices": (unsure,)})
    assert "None of the 1 examined parts of the evaluation data got significantly worse" in render_card(
        report(changes=(sure,))
    )


def test_a_users_template_replaces_single_blocks(tmp_path):
    own = tmp_path / "own.jinja"
    own.write_text('{% extends "card.md.jinja" %}{% block limits %}## Ours\n{{ report.base.id }}\n{% endblock %}')
    text = render_card(report(), template=own)
    assert "## Ours\nsomeone/large\n<!-- hf_pe:end limits -->" in text
    assert "## Before and after" in text
    own.write_text("{% block %}")
    with pytest.raises(UsageError, match=r"own.jinja, line 1"):
        render_card(report(), template=own)
    with pytest.raises(UsageError, match="there is no file"):
        render_card(report(), template=tmp_path / "no.jinja")


def test_what_the_original_says_of_its_use_is_quoted():
    base = report().base.model_copy(update={"intended_use": "For search.\n\nNot for law.", "citation": "@misc{x}"})
    text = render_card(report(base=base))
    assert "> For search.\n>\n> Not for law." in text
    assert "@misc{x}" in text
    assert "sun2023wanda" in text


def test_what_was_not_measured_says_so():
    bare = Measurement(parameters=1, parameters_without_embeddings=1, dtype="float32")
    text = render_card(report(before=bare, after=bare, reload=None))
    assert text.count("not measured") >= 6
    assert "nan" not in text.lower().split()


def test_no_gain_in_speed_is_admitted():
    slow = measurement(0.5, latency=(Latency(batch=1, length=128, threads=2, rounds=9, p50_ms=11, p90_ms=12),))
    assert "not faster at batch 1" in render_card(report(after=slow))


def test_the_card_is_a_pure_function_of_the_report(tmp_path):
    again = Report.model_validate_json(report().model_dump_json())
    assert again == report()
    assert render_card(again) == render_card(report())
    write_card(report(), tmp_path)
    first = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    write_card(again, tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == first
    assert set(first) == {"README.md", "kept_units.png", "quality_size.png"}


def test_a_removed_layer_keeps_nothing():
    assert kept_per_layer(report()) == {"ffn": (8, [4, 0, 4])}


def test_widths_that_differ_from_layer_to_layer_are_shown_for_each():
    layers, _ = report().stages[0].plan.sizes
    ffn = SizeChange(axis="ffn", before=8, after={"encoder.layer.0": 6, "encoder.layer.1": 3})

    def with_sizes(*sizes):
        (stage,) = report().stages
        return report(stages=(stage.model_copy(update={"plan": stage.plan.model_copy(update={"sizes": sizes})}),))

    assert kept_per_layer(with_sizes(layers, ffn)) == {"ffn": (8, [6, 0, 3])}
    assert kept_per_layer(with_sizes(ffn)) == {"ffn": (8, [6, 3])}
    assert "ffn 8 → 3 to 6" in render_card(with_sizes(layers, ffn))


@pytest.mark.parametrize("kept", [None, {}])
def test_pictures_are_left_out_where_nothing_was_pruned(tmp_path, kept):
    write_card(report(stages=(), before=measurement(quality={}), after=measurement(quality={})), tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"README.md"}


def test_every_recipe_has_a_tag_of_its_own():
    assert len({recipe.tag for recipe in RECIPES.values()}) == len(RECIPES)


@pytest.mark.parametrize("recipe", RECIPES.values())
def test_an_older_plan_has_the_tag_that_its_recipe_has_today(recipe):
    sizes = {"parameters": 1, "parameters_without_embeddings": 1, "weight_bytes": 4}
    older = Plan(recipe=recipe.kind(), title="older", exact=True, **sizes)
    assert (older.tag, older.changes) == (recipe.tag, recipe.changes)
    Plan.model_validate(older.model_dump() | {"eight_bits": []})


def test_sensitivity_is_a_table_of_the_most_and_a_picture_of_all(tmp_path):
    lost = {f"layers.{i}.up": 10.0 ** -(i % 7) for i in range(20)}
    plan = Plan(
        recipe="quantize", title="NF4", parameters=1, parameters_without_embeddings=1, weight_bytes=1, exact=True,
        sensitivity=lost, modules_to_not_convert=("lm_head", "layers.0.up"),
    )  # fmt: skip
    base = report()
    changed = base.model_copy(update={"stages": (base.stages[0].model_copy(update={"plan": plan}),)})
    write_card(changed, tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "| `layers.0.up` | 1.00e+00 | kept |" in card and "| `layers.7.up` | 1.00e+00 | quantized |" in card
    assert "`layers.6.up`" not in card and "](sensitivity.png)" in card and (tmp_path / "sensitivity.png").is_file()
    assert "sensitivity" not in render_card(base)


def test_a_quantized_models_card_states_its_latency():
    plan = Plan(
        recipe="quantize", title="NF4", parameters=1, parameters_without_embeddings=1, weight_bytes=1, exact=True
    )
    base = report()
    changed = base.model_copy(
        update={
            "stages": (base.stages[0].model_copy(update={"plan": plan}),),
            "before": measurement(4.0),
            "after": measurement(2.0),
            "variants": {"main": measurement(1.0), "nf4": measurement(2.0)},
        }
    )
    assert "on this machine a forward pass takes 2.0 times as long at batch 1, length 128" in render_card(changed)
    assert "Packed weights" not in render_card(base)


def test_a_metric_that_became_no_number_is_said_to_be_worse():
    text = render_card(report(after=measurement(0.5, quality={"spearman": float("nan")})))
    assert "spearman went from 0.9000 to nan." in text


def test_rows_that_were_left_out_or_cut_are_counted():
    assert "- Of " not in render_card(report())
    counts = RowCounts(read=1200, empty=3, duplicate=2, over_limit=1000, overlapping=1, truncated=4)
    data = DataFacts(train=("a.csv",), eval=None, train_rows=10, eval_rows=2, fingerprint="abc", counts=counts)
    assert (
        "- Of 1,200 rows: 3 dropped as empty, 2 dropped as duplicates, 1,000 dropped by the limits, 4 truncated to "
        "`max_length` tokens, 1 evaluated on although they are training rows." in render_card(report(data=data))
    )


def test_the_card_names_device_and_dtype_of_every_latency():
    def taken(device, dtype):
        times = Latency(batch=1, length=128, threads=2, device=device, dtype=dtype, rounds=9, p50_ms=10, p90_ms=12)
        return measurement(latency=(times,))

    alike = render_card(report(before=taken("cpu", "float32"), after=taken("cpu", "float32")))
    assert "| Latency p50, ms (batch 1, length 128, 2 threads, cpu, float32) |" in alike
    other = render_card(report(before=taken("cpu", "float32"), after=taken("cpu", "bfloat16")))
    assert "2 threads, cpu, float32 before and bfloat16 after) |" in other
    assert "| Latency p50, ms (batch 1, length 128, 2 threads) |" in render_card(report())
