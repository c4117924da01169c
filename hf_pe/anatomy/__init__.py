"""What a model is made of, found by difference."""

from hf_pe.anatomy.axis import EXPERT_STEP as EXPERT_STEP
from hf_pe.anatomy.axis import Anatomy as Anatomy
from hf_pe.anatomy.axis import Axis as Axis
from hf_pe.anatomy.axis import Layout as Layout
from hf_pe.anatomy.axis import Slot as Slot
from hf_pe.anatomy.discover import EVERYWHERE as EVERYWHERE
from hf_pe.anatomy.discover import HEADS as HEADS
from hf_pe.anatomy.discover import Architecture as Architecture
from hf_pe.anatomy.discover import asks as asks
from hf_pe.anatomy.discover import discover as discover
from hf_pe.anatomy.discover import is_norm as is_norm
from hf_pe.anatomy.discover import renumber_ as renumber_
from hf_pe.anatomy.discover import resized as resized
from hf_pe.anatomy.discover import skeleton as skeleton
from hf_pe.anatomy.discover import tokens_named as tokens_named
from hf_pe.anatomy.form import METHOD as METHOD
from hf_pe.anatomy.form import Form as Form
from hf_pe.anatomy.form import Separable as Separable
from hf_pe.anatomy.form import built as built
from hf_pe.anatomy.form import form_of as form_of
from hf_pe.anatomy.form import reshape_ as reshape_
from hf_pe.anatomy.form import with_form as with_form
from hf_pe.anatomy.heads import label_head as label_head
