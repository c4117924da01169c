"""Forward passes over calibration rows and the statistics that they give.

The statistics are second moments of module inputs, gradients, block influence, routing of experts, and the distance
between the outputs of two models. Where memory is short, the rows pass one block at a time (blockwise passes).
"""

from hf_pe.calibration.blockwise import PausedBatch as PausedBatch
from hf_pe.calibration.blockwise import Stop as Stop
from hf_pe.calibration.blockwise import blockwise_passes as blockwise_passes
from hf_pe.calibration.hooks import BATCH as BATCH
from hf_pe.calibration.hooks import Passes as Passes
from hf_pe.calibration.hooks import count_calls as count_calls
from hf_pe.calibration.hooks import hidden_of as hidden_of
from hf_pe.calibration.hooks import same_tensor as same_tensor
from hf_pe.calibration.hooks import watch as watch
from hf_pe.calibration.hooks import watching as watching
from hf_pe.calibration.moments import moments as moments
from hf_pe.calibration.moments import moments_by_block as moments_by_block
from hf_pe.calibration.output_distance import distance as distance
from hf_pe.calibration.output_distance import rows_within as rows_within
from hf_pe.calibration.output_distance import task_outputs as task_outputs
from hf_pe.calibration.token_weights import direction_weight as direction_weight
from hf_pe.calibration.token_weights import mean_square as mean_square
