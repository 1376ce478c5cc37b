"""The dual encoder: an image tower, a text tower and one learned scale between them.

Shapes: B batch, R image side, T tokens, W channels of the text tower, D joint embedding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator.config import ModelConfig
from orchestrator.model.resnet import Bottleneck, ModifiedResNet
from orchestrator.model.transformer import ResidualAttentionBlock, Transformer
from orchestrator.model.vit import VisionTransformer


class CLIP(nn.Module):
    """CLIP's image and text towers.

    Parameters
    ----------
    config : every size; `vocab_size` must be set

    Source: Radford et al. 2021, sections 2.4 and 2.5.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        vision, text = config.vision, config.text
        self.visual: VisionTransformer | ModifiedResNet
        if vision.kind == "vit":
            self.visual = VisionTransformer(
                config.image_size,
                vision.patch_size,
                vision.width,
                vision.layers[0],
                vision.heads,
                config.embed_dim,
                config.activation,
            )
        else:
            self.visual = ModifiedResNet(config.image_size, vision.layers, vision.width, vision.heads, config.embed_dim)
        self.token_embedding = nn.Embedding(config.vocab_size, text.width)
        self.positional_embedding = nn.Parameter(
            nn.init.normal_(torch.empty(text.context_length, text.width), std=0.01)
        )
        self.transformer = Transformer(text.width, text.layers, text.heads, config.activation, causal=True)
        self.ln_final = nn.LayerNorm(text.width)
        self.text_projection = nn.Parameter(
            nn.init.normal_(torch.empty(text.width, config.embed_dim), std=text.width**-0.5)
        )
        # Learned as a logarithm; the multiplier is its exponential.
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / config.init_temperature)))
        if config.objective == "sigmoid":
            self.logit_bias = nn.Parameter(torch.tensor(config.init_logit_bias))
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def encode_image(self, image_B3RR: Tensor) -> Tensor:
        """Unit-length image embeddings (B, D) of normalised pictures (B, 3, R, R), or of half that side."""
        return F.normalize(self.visual(image_B3RR), dim=-1)

    def encode_text(self, tokens_BT: Tensor) -> Tensor:
        """Unit-length text embeddings (B, D) of tokens (B, T), zero-padded after [EOS], the highest id.

        The tower runs only up to the last [EOS] of the batch. That is exact: attention is causal, and features are
        read at [EOS].
        """
        eos_B = tokens_BT.argmax(dim=-1)
        tokens_BT = tokens_BT[:, : int(eos_B.max()) + 1]
        x_BTW = self.token_embedding(tokens_BT) + self.positional_embedding[: tokens_BT.shape[1]]
        x_BW = self.ln_final(self.transformer(x_BTW, eos_B))
        return F.normalize(x_BW @ self.text_projection, dim=-1)

    def forward(self, image_B3RR: Tensor, tokens_BT: Tensor) -> tuple[Tensor, ...]:
        """Image embeddings (B, D), text embeddings (B, D), the logit scale (the multiplier); with the sigmoid objective
        the bias, too."""
        # Texts first: their length has to come from the device, which has nothing else to do yet.
        text_BD = self.encode_text(tokens_BT)
        embeddings = self.encode_image(image_B3RR), text_BD, self.logit_scale.exp()
        return (*embeddings, self.logit_bias) if self.config.objective == "sigmoid" else embeddings

    def checkpoint_activations(self) -> None:
        """Keep only each block's input for the backward pass and compute the rest again: a third more work."""
        for module in self.modules():
            if isinstance(module, Transformer | ModifiedResNet):
                module.checkpoint_activations = True

    def compile_blocks(self) -> None:
        """Have torch.compile fuse the operations of each block, in place; blocks of a kind and size share their code.

        Blocks rather than towers, so that compiling takes seconds and not minutes.
        """
        import torch._dynamo.config  # takes a second, which runs that do not compile need not pay

        # A ResNet's four stages have two sizes of block each, in training and in evaluation: more than torch's 8.
        torch._dynamo.config.recompile_limit = max(32, torch._dynamo.config.recompile_limit)
        for module in self.modules():
            if isinstance(module, ResidualAttentionBlock):
                module.compile()  # for any length, once it has seen two
            elif isinstance(module, Bottleneck):
                module.compile(dynamic=False)

    def round_text_tower(self) -> None:
        """Keep the text tower's weights in bf16, half the memory; `train.low_precision` updates them."""
        for module in (self.token_embedding, self.transformer, self.ln_final):
            module.to(torch.bfloat16)
        for name in ("positional_embedding", "text_projection"):
            setattr(self, name, nn.Parameter(self.get_parameter(name).detach().to(torch.bfloat16)))

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Hold the logit scale at or below `max_logit_scale`; call it after each optimiser step."""
        self.logit_scale.clamp_(max=math.log(self.config.max_logit_scale))
