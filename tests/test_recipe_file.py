import json
from pathlib import Path

import pytest
import yaml

from hf_pe.errors import UsageError
from hf_pe.recipe_file import json_schema, read_recipe
from tests.helpers import assert_same_text, shared

ROOT = Path(__file__).parents[1]
GOOD = {
    "model": "someone/model",
    "data": {"train": "a.csv"},
    "recipes": [{"recipe": "prune", "keep": {"ffn": 0.5}}, {"recipe": "distil"}, {"recipe": "quantize"}],
}


def write(folder, content):
    path = folder / "recipe.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.name)
def test_the_shipped_recipes_are_read_and_begin_with_their_command(path):
    assert path.read_text("utf-8").startswith(f"# hf-pe run recipes/{path.name}")
    assert read_recipe(path).recipes


def test_a_file_becomes_the_same_objects(tmp_path):
    recipe = read_recipe(write(tmp_path, GOOD))
    assert [type(r).__name__ for r in recipe.recipes] == [
        "StructuredPruning",
        "Distillation",
        "BitsAndBytesQuantization",
    ]
    assert recipe.recipes[0].keep == {"ffn": 0.5}


def test_values_can_be_set_from_outside(tmp_path):
    path = write(tmp_path, GOOD)
    recipe = read_recipe(path, ["data.limit=7", "recipes.0.keep.layers=4", "recipes.1.losses={kl: 2}", "seed=3"])
    assert (recipe.data.limit, recipe.recipes[0].keep, recipe.seed) == (7, {"ffn": 0.5, "layers": 4}, 3)
    assert recipe.recipes[1].losses == {"kl": 2}
    for wrong in ("data.limit", "recipes.9.steps=1", "model.x=1"):
        with pytest.raises(UsageError, match="--set"):
            read_recipe(path, [wrong])


def changed(path, value):
    content = json.loads(json.dumps(GOOD))
    holder = content
    for part in path[:-1]:
        holder = holder[part]
    holder[path[-1]] = value
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed(["modle"], "x"), r"modle: unknown key; expected one of .*Did you mean 'model'\?"),
        (changed(["prune"], {"keep": {"ffn": 0.5}}), r"\n  prune: unknown key; expected one of format_version"),
        (changed(["data", "tran"], "x"), r"data\.tran: unknown key.*Did you mean 'train'\?"),
        (
            changed(["recipes", 0, "budget"], {"latncy": 0.5}),
            r"recipes\.0\.budget\.latncy: unknown key; expected one of parameters, flops.*Did you mean 'latency'\?",
        ),
        (
            changed(["recipes", 0, "criterium"], "x"),
            r"recipes\.0\.criterium: unknown key.*Did you mean 'criterion'\?",
        ),
        (
            changed(["recipes", 0, "recipe"], "prun"),
            r"recipes\.0\.recipe: expected one of prune, swap, separate, distil, quantize, cast; got 'prun'. Did you mean 'prune'\?",
        ),
        (changed(["recipes", 0], {"keep": {}}), "expected a 'recipe:' key"),
        (
            changed(["recipes", 0, "keep", "ffn"], 1.5),
            r"recipes\.0\.keep\.ffn: expected a fraction above 0 and up to 1.0.*got 1.5",
        ),
        (
            changed(["recipes", 0, "keep", "ffn"], "half"),
            r"recipes\.0\.keep\.ffn: expected a fraction.*got 'half'",
        ),
        (
            changed(["recipes", 0, "criterion"], "magnitud"),
            r"criterion: expected one of magnitude_l2, .*, obs_kfac; got 'magnitud'. Did you mean 'magnitude_l2'\?",
        ),
        (
            changed(["recipes", 1, "steps"], "many"),
            r"recipes\.1\.steps: expected a valid integer.*got 'many'",
        ),
        (
            changed(["recipes", 1, "steps"], 0),
            r"recipes\.1\.steps: expected greater than or equal to 1; got 0",
        ),
        (
            changed(["recipes", 1, "losses"], {"cosin": 1}),
            r"recipes\.1\.losses: no loss is called 'cosin'.*Did you mean 'cosine'\?",
        ),
        (changed(["data", "eval_fraction"], 2), r"data\.eval_fraction: expected less than 1; got 2"),
        (
            changed(["task"], "embeding"),
            r"task: expected one of embedding, causal_lm, .*object_detection; got 'embeding'. Did you mean 'embedding'\?",
        ),
        (changed(["format_version"], 9), r"format_version: expected 1; got 9"),
        ({k: v for k, v in GOOD.items() if k != "model"}, "model: missing"),
        (changed(["recipes"], [GOOD["recipes"][2], GOOD["recipes"][0]]), "Put prune first"),
        (changed(["recipes"], []), "at least one"),
        ("just text", "expected keys such as model"),
        ("a: [", "is no YAML"),
    ],
)
def test_mistakes_are_named_with_what_was_expected(tmp_path, content, message):
    with pytest.raises(UsageError, match=message):
        read_recipe(write(tmp_path, content))


@pytest.mark.parametrize("name", ["main", "before", "outside"])
def test_a_variant_that_would_be_written_over_something_else_is_refused(name):
    with pytest.raises(UsageError, match=r"variants: '(main|before|\.\./\.\./escaped)'"):
        read_recipe(shared(f"cases/recipes/variant_{'' if name == 'outside' else 'named_'}{name}.yaml"))


def test_a_key_that_is_given_twice_is_refused_with_its_lines(tmp_path):
    with pytest.raises(UsageError, match=r"'recipes' is given twice \(lines 5 and 6\)"):
        read_recipe(shared("cases/recipes/recipes_twice.yaml"))
    path = write(tmp_path, GOOD)
    with pytest.raises(UsageError, match=r"--set recipes\.0\.keep=.*: 'ffn' is given twice"):
        read_recipe(path, ["recipes.0.keep={ffn: 0.5, layers: 3, ffn: 0.25}"])
    with pytest.raises(UsageError, match=r"--set seed=\[: the value is no YAML"):
        read_recipe(path, ["seed=["])


def test_a_key_that_overrides_a_merged_one_is_not_given_twice(tmp_path):
    head, recipes = (
        "model: a/b\ndata: {train: a.csv}\nrecipes:\n",
        "- &one {recipe: distil, steps: 2}\n- {<<: *one, steps: 3}\n",
    )
    assert [step.steps for step in read_recipe(write(tmp_path, head + recipes)).recipes] == [2, 3]


def test_the_main_result_and_a_variant_need_branches_of_their_own(tmp_path):
    content = {**GOOD, "recipes": GOOD["recipes"][:1], "publish": {"repo": "someone/small", "branch": "nf4"}}
    with pytest.raises(UsageError, match=r"publish\.branch: 'nf4' is the branch of the variant"):
        read_recipe(write(tmp_path, {**content, "variants": {"nf4": {"recipe": "quantize"}}}))


def test_all_mistakes_are_named_at_once(tmp_path):
    content = {**GOOD, "modle": 1, "seed": "x"}
    with pytest.raises(UsageError, match=r"modle[\s\S]*seed|seed[\s\S]*modle"):
        read_recipe(write(tmp_path, content))


def test_a_missing_file():
    with pytest.raises(UsageError, match="does not exist"):
        read_recipe("no/such.yaml")


def test_the_committed_schema_is_that_of_the_code():
    assert_same_text(ROOT / "recipes" / "schema.json", json_schema(), "hf-pe schema > recipes/schema.json")
