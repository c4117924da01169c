import math

import pytest
from huggingface_hub import ModelCard

from hf_pe.hub import render_card
from hf_pe.hub.nearness_table import RULE, forgetting_sentence, nearness_table
from hf_pe.nearness_records import Estimate, Forgetting, Nearness
from hf_pe.report import Report
from tests.hub.test_card import measurement, report


def estimate(value, spread=0.01):
    return Estimate(value=value, low=value - spread, high=value + spread)


def logs(factor, low, high):
    return Estimate(value=math.log(factor), low=math.log(low), high=math.log(high))


def compared(general_factor=(1.5, 1.4, 1.6), excess=(1.25, 1.2, 1.3)):
    """The report of a language model whose perplexity rose from 20 to 24, and from 30 to 45 on the general text."""
    values = {"kl": estimate(0.125), "agreement": estimate(0.75)}
    records = [
        Nearness(text="evaluation", rows=40, predictions=5080, values=values),
        Nearness(text="general", rows=80, predictions=10160, values=values | {"kl": estimate(0.25)}),
    ]
    losses = Forgetting(
        measure="perplexity", evaluation=math.log(1.2), general=logs(*general_factor), excess=logs(*excess)
    )
    after = {"general_quality": {"perplexity": 45.0}, "nearness": tuple(records), "forgetting": losses}
    data = {"general": ("builtin:pydoc",), "general_rows": 400, "general_fingerprint": "def"}
    return report(
        metric="perplexity",
        higher_is_better=False,
        before=measurement(quality={"perplexity": 20.0}, general_quality={"perplexity": 30.0}),
        after=measurement(0.5, quality={"perplexity": 24.0}, **after),
        data=report().data.model_copy(update=data),
    )


BLOCK = """\
## Nearness to the original

| text | predictions | perplexity before | perplexity after | KL, nats | agreement |
| --- | ---: | ---: | ---: | ---: | ---: |
| evaluation rows | 5,080 | 20.0000 | 24.0000 | 0.125 [0.115, 0.135] | 75.0% [74.0%, 76.0%] |
| general text (builtin:pydoc) | 10,160 | 30.0000 | 45.0000 | 0.25 [0.24, 0.26] | 75.0% [74.0%, 76.0%] |

KL is the mean of KL(original, result) over the predictions. Agreement is the fraction of predictions for which both \
find the same class most likely. Both models read the same rows; in brackets: 95 % confidence interval by bootstrap \
over rows. On the general text the perplexity changed by a factor of 1.500 [1.400, 1.600], on the evaluation rows by \
1.200: 1.250 [1.200, 1.300] times as much. """


def test_the_block_of_the_card():
    text = render_card(compared())
    assert BLOCK + RULE in text
    assert "- General text, on which forgetting was measured: builtin:pydoc (400 rows). Fingerprint: `def`." in text


def test_a_clear_loss_is_a_regression():
    assert f"- It has forgotten. {forgetting_sentence(compared())}" in render_card(compared())


@pytest.mark.parametrize(
    ("general", "excess"),
    [
        ((1.5, 1.4, 1.6), (1.25, 1.04, 1.5)),  # the difference may be below the limit
        ((1.0, 0.98, 1.02), (1.25, 1.2, 1.3)),  # only the evaluation rows gained
    ],
)
def test_no_clear_loss_is_none(general, excess):
    unclear = compared(general, excess)
    assert not unclear.after.forgetting.is_clear
    text = render_card(unclear)
    assert "It has forgotten" not in text and forgetting_sentence(unclear) in text


def test_embeddings_have_a_cosine():
    values = {"cosine": estimate(0.9)}
    losses = Forgetting(measure="cosine", evaluation=0.1, general=estimate(0.2), excess=estimate(0.1))
    records = (Nearness(text="evaluation", rows=9, predictions=9, values=values),)
    embedding = report(after=measurement(0.5, nearness=records, forgetting=losses))
    assert nearness_table(embedding).heads[-1] == "cosine"
    assert forgetting_sentence(embedding) == (
        "On the general text the cosine to the original's embeddings is 0.800 [0.790, 0.810], on the evaluation rows "
        "0.900: lower by 0.100 [0.090, 0.110]."
    )
    assert embedding.after.forgetting.is_clear


def test_an_older_report_has_no_such_block():
    older = report().model_dump(mode="json")
    for measured in (older["before"], older["after"]):
        for name in ("general_quality", "nearness", "forgetting"):
            del measured[name]
    for name in ("general", "general_rows", "general_fingerprint"):
        del older["data"][name]
    card = render_card(Report.model_validate(older))
    assert "Nearness" not in card and "eneral text" not in card


def test_the_card_is_made_again_from_the_report():
    assert render_card(Report.model_validate_json(compared().model_dump_json())) == render_card(compared())


def test_the_hub_reads_the_general_text_as_a_data_set_of_its_own():
    results = ModelCard(render_card(compared())).data.eval_results
    assert [(r.dataset_type, r.metric_name, r.metric_value) for r in results] == [
        ("a.csv", "perplexity (after compression)", 24.0),
        ("a.csv", "perplexity (before compression)", 20.0),
        ("builtin:pydoc", "perplexity (after compression)", 45.0),
        ("builtin:pydoc", "perplexity (before compression)", 30.0),
    ]
