"""Registers the model with transformers: import this, and its auto classes load a checkpoint folder.

``import casa_core`` alone registers nothing: it stays free of torch, so that the command line starts quickly.
"""

from casa_core.config import CasaConfig
from casa_core.model import CasaForConditionalGeneration
from casa_core.processing.processor import CasaProcessor

__all__ = ["CasaConfig", "CasaForConditionalGeneration", "CasaProcessor"]
