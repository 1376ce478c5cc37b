"""A loaded model directory that embeds pictures and texts and makes zero-shot classifiers.

One for training's end, evaluation and serving. Imports torch, never Ray.
"""

from orchestrator.inference.embed import Embedder
from orchestrator.inference.export import export_model
from orchestrator.inference.model_directory import ModelDirectoryError, read_model, save_model
from orchestrator.inference.zero_shot import build_classifier, class_probabilities, zero_shot_classifier

__all__ = [
    "Embedder",
    "ModelDirectoryError",
    "build_classifier",
    "class_probabilities",
    "export_model",
    "read_model",
    "save_model",
    "zero_shot_classifier",
]
