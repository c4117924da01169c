"""Forward passes over calibration rows: what flows into modules, block by block where memory asks for it, and how far
answers move."""

from hf_pe.calibration.answers import answers as answers
from hf_pe.calibration.answers import distance as distance
from hf_pe.calibration.answers import rows_within as rows_within
from hf_pe.calibration.lockstep import Stop as Stop
from hf_pe.calibration.lockstep import Waiting as Waiting
from hf_pe.calibration.lockstep import lockstep as lockstep
from hf_pe.calibration.passes import BATCH as BATCH
from hf_pe.calibration.passes import Passes as Passes
from hf_pe.calibration.passes import comes_by as comes_by
from hf_pe.calibration.passes import hidden_of as hidden_of
from hf_pe.calibration.passes import mean_square as mean_square
from hf_pe.calibration.passes import moments as moments
from hf_pe.calibration.passes import moments_by_block as moments_by_block
from hf_pe.calibration.passes import same as same
from hf_pe.calibration.passes import turning as turning
from hf_pe.calibration.passes import watch as watch
from hf_pe.calibration.passes import watching as watching
