"""The towers against transformers' CLIP, and the ResNet against a plain computation."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from orchestrator.config import ModelConfig, TextConfig, VisionConfig
from orchestrator.model.clip import CLIP
from orchestrator.model.transformer import ResidualAttentionBlock

VOCAB, EOS = 99, 98
TEXT = TextConfig(layers=3, width=32, heads=4, context_length=12)
VIT = ModelConfig(embed_dim=24, image_size=32, vision=VisionConfig("vit", [2], 48, 8, 6), text=TEXT, vocab_size=VOCAB)
RESNET = ModelConfig(
    embed_dim=24, image_size=64, vision=VisionConfig("resnet", [1, 2, 1, 1], 8, 32, 4), text=TEXT, vocab_size=VOCAB
)


def captions():
    tokens = torch.zeros(4, 12, dtype=torch.int32)
    for row, length in enumerate([3, 5, 9, 4]):
        tokens[row, :length] = torch.randint(1, EOS, (length,))
        tokens[row, length - 1] = EOS
    return tokens


def as_transformers(model: CLIP):
    """The same weights in transformers' CLIPModel."""
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig(
        text_config={
            "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 3,
            "num_attention_heads": 4, "max_position_embeddings": 12, "hidden_act": "quick_gelu",
            "bos_token_id": 97, "eos_token_id": EOS, "projection_dim": 24,
        },
        vision_config={
            "hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 6,
            "image_size": 32, "patch_size": 8, "hidden_act": "quick_gelu", "projection_dim": 24,
        },
        projection_dim=24,
    )  # fmt: skip
    ours = model.state_dict()
    theirs = {
        "logit_scale": ours["logit_scale"],
        "visual_projection.weight": ours["visual.proj"].T,
        "text_projection.weight": ours["text_projection"].T,
        "vision_model.embeddings.class_embedding": ours["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": ours["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": ours["visual.positional_embedding"],
        "text_model.embeddings.token_embedding.weight": ours["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": ours["positional_embedding"],
    }
    for kind in ("weight", "bias"):
        theirs[f"vision_model.pre_layrnorm.{kind}"] = ours[f"visual.ln_pre.{kind}"]
        theirs[f"vision_model.post_layernorm.{kind}"] = ours[f"visual.ln_post.{kind}"]
        theirs[f"text_model.final_layer_norm.{kind}"] = ours[f"ln_final.{kind}"]
        for prefix, tower, layers in (("visual.transformer", "vision_model", 2), ("transformer", "text_model", 3)):
            for layer in range(layers):
                source, target = f"{prefix}.resblocks.{layer}", f"{tower}.encoder.layers.{layer}"
                for name, part in zip("qkv", ours[f"{source}.attn.in_proj_{kind}"].chunk(3), strict=True):
                    theirs[f"{target}.self_attn.{name}_proj.{kind}"] = part
                for a, b in (
                    ("attn.out_proj", "self_attn.out_proj"), ("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"),
                    ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2"),
                ):  # fmt: skip
                    theirs[f"{target}.{b}.{kind}"] = ours[f"{source}.{a}.{kind}"]
    reference = CLIPModel(config).eval()
    left = reference.load_state_dict(theirs, strict=False)
    assert not left.unexpected_keys and all("position_ids" in key for key in left.missing_keys), left
    return reference


def test_vit_and_text_tower_equal_transformers():
    torch.manual_seed(0)
    model = CLIP(VIT).eval()
    reference = as_transformers(model)
    image, tokens = torch.randn(4, 3, 32, 32), captions()
    with torch.no_grad():
        image_features, text_features, scale = model(image, tokens)
        out = reference(input_ids=tokens.long(), pixel_values=image)
    torch.testing.assert_close(image_features, out.image_embeds, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(text_features, out.text_embeds, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scale * image_features @ text_features.T, out.logits_per_image, rtol=1e-4, atol=1e-4)


def plain_resnet(tower, image):
    """The modified ResNet written from the paper's description, with the tower's weights."""

    def norm(name, x):
        layer = tower.get_submodule(name)
        return F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias)

    def conv(name, x, **options):
        return F.conv2d(x, tower.get_submodule(name).weight, **options)

    x = F.relu(norm("bn1", conv("conv1", image, stride=2, padding=1)))
    x = F.relu(norm("bn2", conv("conv2", x, padding=1)))
    x = F.avg_pool2d(F.relu(norm("bn3", conv("conv3", x, padding=1))), 2)
    for stage, blocks in enumerate([1, 2, 1, 1], start=1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            y = F.relu(norm(f"{name}.bn1", conv(f"{name}.conv1", x)))
            y = F.relu(norm(f"{name}.bn2", conv(f"{name}.conv2", y, padding=1)))
            y = norm(f"{name}.bn3", conv(f"{name}.conv3", F.avg_pool2d(y, stride)))
            if block == 0:
                x = norm(f"{name}.downsample.1", conv(f"{name}.downsample.0", F.avg_pool2d(x, stride)))
            x = F.relu(x + y)
    pool = tower.attnpool
    positions = x.flatten(2).permute(2, 0, 1)
    positions = torch.cat([positions.mean(0, keepdim=True), positions]) + pool.positional_embedding[:, None]
    out, _ = F.multi_head_attention_forward(
        positions[:1], positions, positions, positions.shape[-1], pool.heads,
        None, torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]), None, None, False, 0.0,
        pool.c_proj.weight, pool.c_proj.bias, training=False, use_separate_proj_weight=True,
        q_proj_weight=pool.q_proj.weight, k_proj_weight=pool.k_proj.weight, v_proj_weight=pool.v_proj.weight,
    )  # fmt: skip
    return out[0]


def test_resnet_equals_a_plain_computation():
    torch.manual_seed(0)
    model = CLIP(RESNET).eval()
    for module in model.modules():  # Fresh statistics and zeroed gains would hide mistakes.
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
    image = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.visual(image), plain_resnet(model.visual, image), rtol=1e-4, atol=1e-4)


def test_gradients_of_a_resnet_lie_in_memory_as_its_weights_do():
    """DistributedDataParallel warns where they do not."""
    visual = CLIP(RESNET).visual.to(memory_format=torch.channels_last)
    visual(torch.randn(2, 3, 64, 64)).sum().backward()
    for name, weight in visual.named_parameters():
        assert weight.grad.stride() == weight.stride(), name


def test_attention_pool_has_the_gradients_of_plain_attention():
    """It never makes the keys and values that plain attention makes; its parameters must learn the same."""
    torch.manual_seed(0)
    tower = CLIP(RESNET).eval().double().visual
    image = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    parameters = dict(tower.attnpool.named_parameters())
    weight = torch.randn(3, 24, dtype=torch.float64)
    ours, plain = (
        torch.autograd.grad((compute(image) * weight).sum(), list(parameters.values()))
        for compute in (tower, lambda image: plain_resnet(tower, image))
    )
    for name, mine, theirs in zip(parameters, ours, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("causal", [False, True])
def test_one_position_of_a_block_is_that_of_the_whole_block(causal):
    """In value and in every gradient, wherever it lies; with `causal` it sees nothing after it."""
    torch.manual_seed(0)
    block = ResidualAttentionBlock(24, 3, "quick_gelu").double()
    torch.nn.init.normal_(block.attn.in_proj_weight, std=0.5)
    torch.nn.init.normal_(block.attn.in_proj_bias)
    x_BTW, place_B = torch.randn(4, 7, 24, dtype=torch.double, requires_grad=True), torch.tensor([0, 3, 6, 3])
    upstream_BW = torch.randn(4, 24, dtype=torch.double)
    inputs = [x_BTW, *block.parameters()]
    whole_BW = block(x_BTW, causal)[range(4), place_B]
    expected = torch.autograd.grad(whole_BW, inputs, upstream_BW)
    found_BW = block(x_BTW, causal, place_B)
    torch.testing.assert_close(found_BW, whole_BW)
    for gradient, wanted in zip(torch.autograd.grad(found_BW, inputs, upstream_BW), expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-7, atol=1e-10)


def test_sums_that_pass_from_block_to_block_are_of_autocasts_type():
    model, met = CLIP(VIT), []
    for block in (*model.visual.transformer.resblocks, *model.transformer.resblocks):
        block.register_forward_hook(lambda block, inputs, output: met.extend((inputs[0].dtype, output.dtype)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(torch.randn(4, 3, 32, 32), captions())
    assert len(met) == 2 * (2 + 3) and set(met) == {torch.bfloat16}


def test_training_in_bf16_on_a_cpu_takes_the_faster_attention_with_equal_results():
    """Both kernels round to bf16, in another order: equal within its 8 bits."""
    from orchestrator.model.transformer import SelfAttention

    torch.manual_seed(0)
    attention = SelfAttention(32, 4)
    nn.init.normal_(attention.in_proj_weight, std=32**-0.5)
    x_BTW = torch.randn(4, 12, 32)
    with torch.autocast("cpu", torch.bfloat16):
        training = attention(x_BTW, causal=True)
        with torch.no_grad():
            serving = attention(x_BTW, causal=True)
    exact = attention(x_BTW, causal=True)
    assert training.dtype == serving.dtype == torch.bfloat16
    torch.testing.assert_close(training.float(), exact, rtol=0, atol=0.02)
    upstream = torch.randn_like(exact)
    in_bf16, in_fp32 = (
        torch.autograd.grad((out * upstream).sum(), attention.in_proj_weight)[0] for out in (training, exact)
    )
    torch.testing.assert_close(in_bf16, in_fp32, rtol=0, atol=0.02 * in_fp32.abs().max().item())
    torch.testing.assert_close(serving.float(), exact, rtol=0, atol=0.02)


def test_text_features_do_not_depend_on_the_padding():
    torch.manual_seed(0)
    model = CLIP(VIT).eval()
    tokens = captions()
    with torch.no_grad():
        together = model.encode_text(tokens)
        alone = torch.cat([model.encode_text(row[None]) for row in tokens])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_logit_scale_starts_at_the_inverse_temperature_and_is_clamped():
    model = CLIP(VIT)
    assert model.logit_scale.exp().item() == pytest.approx(1 / 0.07, rel=1e-6)
    with torch.no_grad():
        model.logit_scale.fill_(10.0)
    model.clamp_logit_scale()
    assert model.logit_scale.item() == pytest.approx(math.log(100.0), rel=1e-6)
