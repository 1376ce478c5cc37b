"""Shards -> batches: formats, manifest, image preprocessing, the streaming pipeline, and the demo's data.

Reading and decoding are plain code; Ray appears in `pipeline` and `rejects` alone.
"""
