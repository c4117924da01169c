"""Callbacks for the Trainer of transformers that report on a smaller model, stop at a floor, and publish."""

from hf_pe.callbacks.compression_report import CompressionReport as CompressionReport
from hf_pe.callbacks.publish import PublishCallback as PublishCallback
from hf_pe.callbacks.quality_floor import QualityFloor as QualityFloor
