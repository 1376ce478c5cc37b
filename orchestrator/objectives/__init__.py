"""What a model is trained for. Imports torch, never Ray."""

from orchestrator.objectives.contrastive import info_nce

__all__ = ["info_nce"]
