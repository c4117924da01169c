import pytest
import yaml

from hf_pe.errors import UsageError
from hf_pe.files.yaml_files import load_yaml
from hf_pe.recipe_file import read_recipe

ALIASES = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
MERGES = "a0: &a0 {k: v}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 9))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ALIASES, "expand to more than 100,000 values"),
        (MERGES, "expand to more than 100,000 values"),
        ("model: &a [*a]", "lies inside what it repeats"),
        ("[" * 100_000, "nested too deeply"),
        ("when: 2024-13-45", "month must be in"),
        ("model: *nothing", "undefined alias"),
    ],
)
def test_what_has_no_end_or_no_meaning_is_refused(text, message, tmp_path):
    with pytest.raises(yaml.YAMLError, match=message):
        load_yaml(text)
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(UsageError, match=message) as refused:
        read_recipe(tmp_path / "recipe.yaml")
    assert "recipe.yaml is no YAML" in str(refused.value) and len(str(refused.value)) < 500


def test_aliases_and_merges_that_people_write_are_read():
    text = "base: &base {steps: 10, batch_size: 4}\none: {<<: *base, steps: 20}\ntwo: *base"
    values = load_yaml(text)
    assert values["one"] == {"steps": 20, "batch_size": 4} and values["two"] == values["base"]
    assert load_yaml("") is None
