"""Callbacks for the stock `transformers.Trainer`."""

from hf_pe.callbacks.compression_report import CompressionReport as CompressionReport
from hf_pe.callbacks.publish import PublishCallback as PublishCallback
from hf_pe.callbacks.quality_floor import QualityFloor as QualityFloor
