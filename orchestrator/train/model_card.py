"""The model card: what a model was made of, for whoever finds its directory."""

from __future__ import annotations

from orchestrator.cli import to_yaml
from orchestrator.config import Config
from orchestrator.data.manifest import Manifest


def model_card(config: Config, manifest: Manifest) -> str:
    """README.md of a model directory; `evaluate` appends the result."""
    return f"""---
library_name: clip-on-ray
pipeline_tag: zero-shot-image-classification
---

# {config.run.name}

A dual encoder trained with the contrastive objective on {manifest.samples:,} image-text pairs.

- Data: {len(manifest.shards):,} shards, from `{manifest.shards[0].uri}` to `{manifest.shards[-1].uri}`;
  manifest fingerprint `{manifest.fingerprint}`
- Image tower: {config.model.vision.kind}, {config.model.image_size} pixels; embedding {config.model.embed_dim}

## Recipe

```yaml
{to_yaml(config)}```
"""
