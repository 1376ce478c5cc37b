"""CLIP on Ray: contrastive image-text pretraining, from shards in object storage to a zero-shot classifier.

data        shards -> batches, on Ray Data
model       towers and tokenizer
objectives  the contrastive loss
inference   a finished model that embeds pictures and texts
train       the training loop, on Ray Train
evaluate    what a model can do
"""
