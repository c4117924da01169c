"""What is published: the model card, made from a report."""

from hf_pe.hub.card import render_card as render_card
from hf_pe.hub.card import write_card as write_card
