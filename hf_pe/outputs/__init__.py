"""Writes results so that no file of the user is lost, and repairs what a killed process has left.

A result is written into a hidden work folder beside its output, and renamed when it is complete. Work folders and
results contain a marker file. A folder without a marker is never removed. A lock file keeps two processes from writing
the same output.
"""

from hf_pe.outputs.lock import locked as locked
from hf_pe.outputs.marker import MAIN as MAIN
from hf_pe.outputs.marker import REPORT as REPORT
from hf_pe.outputs.marker import RESULT_MARKER as RESULT_MARKER
from hf_pe.outputs.marker import holds_stages as holds_stages
from hf_pe.outputs.marker import run_id as run_id
from hf_pe.outputs.place import check_output as check_output
from hf_pe.outputs.place import require_space as require_space
from hf_pe.outputs.replace import replaced as replaced
from hf_pe.outputs.run import Run as Run
from hf_pe.outputs.run import run_folder as run_folder
from hf_pe.outputs.stages import check_stages_folder as check_stages_folder
from hf_pe.outputs.stages import stages_folder as stages_folder
