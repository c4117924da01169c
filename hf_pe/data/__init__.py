"""Where examples come from: local files, texts that Python itself carries, Hub data sets. Always rows with columns."""

from hf_pe.data.builtin import sentences as sentences
from hf_pe.data.config import DataConfig as DataConfig
from hf_pe.data.load import Data as Data
from hf_pe.data.load import Examples as Examples
from hf_pe.data.load import load_examples as load_examples
from hf_pe.data.load import load_for_evaluation as load_for_evaluation
