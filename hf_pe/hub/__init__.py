"""Make the model card of a result from its report, and push the result to the Hub."""

from hf_pe.errors import PushError as PushError
from hf_pe.hub.card import render_card as render_card
from hf_pe.hub.card import write_card as write_card
from hf_pe.hub.compare import side_by_side as side_by_side
from hf_pe.hub.outgoing import prepare as prepare
from hf_pe.hub.outgoing import require_measured as require_measured
from hf_pe.hub.publish import check_access as check_access
from hf_pe.hub.publish import push as push
from hf_pe.hub.settings import Publish as Publish
from hf_pe.hub.tables import comparison as comparison
