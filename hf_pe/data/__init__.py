"""Reads examples from local files, data sets on the Hub, and the documentation in a Python installation.

Whatever the source, the result is `Examples`: training rows and evaluation rows as `datasets.Dataset`, with the columns
that `DataConfig` names.
"""

from hf_pe.data.builtin import sentences as sentences
from hf_pe.data.config import DataConfig as DataConfig
from hf_pe.data.general import load_general as load_general
from hf_pe.data.load import Data as Data
from hf_pe.data.load import Examples as Examples
from hf_pe.data.load import load_examples as load_examples
from hf_pe.data.load import load_for_evaluation as load_for_evaluation
