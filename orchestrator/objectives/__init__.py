"""What a model is trained for, and how a large batch gets there. Imports torch, never Ray.

contrastive  InfoNCE: which caption belongs to which picture
sigmoid      each picture and each text, a pair or not
cached       a batch in chunks, exactly: gradient caching
gather       a batch that lies with several workers
tiles        the similarity matrix in tiles
attach       a loss whose gradients are known from the forward pass
"""

from orchestrator.objectives.cached import cached_backward
from orchestrator.objectives.contrastive import info_nce
from orchestrator.objectives.sigmoid import sigmoid_loss

__all__ = ["cached_backward", "info_nce", "sigmoid_loss"]
