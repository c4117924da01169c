import pytest

from hf_pe.errors import UsageError
from hf_pe.hub import render_card
from tests.hub.test_card import report

EXTENDS = '{% extends "card.md.jinja" %}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ report.__class__.__mro__ }}", "line 2: access to attribute '__class__'.*run in a sandbox"),
        ("{{ ''.__class__ }}", "'__class__'.*run in a sandbox"),
        ("{{ report.parse_file(path) }}", "'parse_file'.*run in a sandbox"),
        ("{{ report.base.model_fields.id.annotation }}", "'model_fields'.*run in a sandbox"),
        ("{{ report['model_copy']() }}", "run in a sandbox"),
        ("{{ papers.update({}) }}", "run in a sandbox"),
        ("{% for x in range(10 ** 9) %}{% endfor %}", "line 2: .*too big"),
        ("{{ 1 / 0 }}", "line 2: ZeroDivisionError"),
        ("{{ report.nothing }}", "nothing"),
        ("{% include 'none.jinja' %}", "there is no file 'none.jinja'"),
        ("{% include '../outside.jinja' %}", "there is no file '../outside.jinja'"),
        ("{% block limits %}", "line 2"),
    ],
)
def test_what_a_template_may_not_do_ends_in_a_message(text, message, tmp_path):
    (tmp_path / "outside.jinja").write_text("outside")
    own = tmp_path / "own" / "own.jinja"
    own.parent.mkdir()
    own.write_text(f"A template.\n{text}")
    with pytest.raises(UsageError, match=message):
        render_card(report(), template=own)


def test_a_template_in_another_encoding(tmp_path):
    own = tmp_path / "own.jinja"
    own.write_bytes("é".encode("latin-1"))
    with pytest.raises(UsageError, match=r"own.jinja: expected UTF-8"):
        render_card(report(), template=own)


def test_values_are_escaped_in_a_template_of_the_users_own(tmp_path):
    own = tmp_path / "own.jinja"
    own.write_text(
        EXTENDS + "{% macro line(x) %}- {{ x }}\n{% endmacro %}"
        "{% block limits %}{{ super() }}{{ line(report.name) }}{{ report.name|upper|code }} *{{ report.after.latency[0].inputs }}*"
        "{{ ['a', report.name]|join(', ') }}{% endblock %}"
    )
    text = render_card(report(name="# <b>"), template=own)
    assert "## Regressions and limitations\n" in text, "a block of ours is Markdown already"
    assert "\n- \\# &lt;b>\n`# <B>` *batch 1, length 128*a, \\# &lt;b>" in text
