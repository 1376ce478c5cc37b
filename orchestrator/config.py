"""Every option of a run: typed, documented once, with its unit.

A recipe (`orchestrator/recipes/*.yaml`) or a file of the user's sets any of them, the command line overrides it:

    python jobs/pretrain.py --config demo --train.epochs 2 --data.train 's3://bucket/cc12m/{00000..01242}.tar'

`orchestrator.cli` does the parsing; `Config.validate` finds the combinations that cannot work, before Ray starts.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from orchestrator import placement
from orchestrator.errors import UserError


class ConfigError(UserError, ValueError):
    """An option, or a combination of options, that cannot work; the message names the key, its value and the cure."""


@dataclass
class DataConfig:
    """Where the image-text pairs come from and how they are read.

    Parameters
    ----------
    train : shard URIs (s3://, gs://, file:// or plain paths); braces ({00000..01242}) and globs (*) are expanded.
        `demo`: the demo's emoji, fetched at the start
    format : webdataset (tar), parquet, or auto (by the file name's ending)
    caption : where a sample's text is. `auto`: the .txt member, else `caption` in the .json member. `txt`, or the name
        of a key of the .json member. A list of strings there: one is drawn for each epoch
    image_column : Parquet: the column of encoded image bytes
    text_column : Parquet: the column of text, a string or a list of strings
    manifest : URI of a manifest made before; empty: made at the start of the run and kept with it
    interleave : shards that one reading task opens at once and draws from at random
    shuffle_buffer : samples, still encoded, that one reading task shuffles among
    crop_scale : least share of the largest square's area that a training crop keeps, in (0, 1]
    jpeg_decode : exact (every pixel is decoded) or fast (libjpeg-turbo decodes at 1/2, 1/4 or 1/8 while that leaves 1.5
        times the target; `orchestrator.data.images` states the difference)
    max_pixels : largest picture accepted, in pixels, before it is decoded
    max_reject_share : share of the manifest's samples that may be bad (each counted once) before the run stops,
        in [0, 1]
    cpus_per_reader : logical CPUs that one reading task reserves
    prefetch_batches : local batches that a trainer keeps ready
    """

    train: str | list[str] = field(default_factory=list)
    format: Literal["auto", "webdataset", "parquet"] = "auto"
    caption: str = "auto"
    image_column: str = "image"
    text_column: str = "text"
    manifest: str = ""
    interleave: int = 4
    shuffle_buffer: int = 1000
    crop_scale: float = 0.9
    jpeg_decode: Literal["exact", "fast"] = "fast"
    max_pixels: int = 100_000_000
    max_reject_share: float = 0.05
    cpus_per_reader: float = 1.0
    prefetch_batches: int = 2


@dataclass
class TokenizerConfig:
    """How captions become tokens.

    Parameters
    ----------
    kind : clip (the released vocabulary of 49,408) or trained (byte-pair encoding trained on the run's own captions)
    vocab_size : entries of a trained vocabulary, specials included; at least 514
    """

    kind: Literal["clip", "trained"] = "clip"
    vocab_size: int = 49408


@dataclass
class VisionConfig:
    """The image tower.

    Parameters
    ----------
    kind : vit or resnet (CLIP's modified ResNet)
    layers : transformer blocks (vit: one number), or bottleneck blocks of each of the four stages (resnet)
    width : channels of the transformer, or of the ResNet's first stage before its expansion by 4
    patch_size : vit: pixels a side of a patch
    heads : attention heads (vit: of each block; resnet: of the attention pool)
    """

    kind: Literal["vit", "resnet"] = "vit"
    layers: list[int] = field(default_factory=lambda: [12])
    width: int = 768
    patch_size: int = 32
    heads: int = 12


@dataclass
class TextConfig:
    """The text tower: a causal transformer read at [EOS].

    Parameters
    ----------
    layers : transformer blocks
    width : channels
    heads : attention heads
    context_length : positions, [SOS] and [EOS] included
    """

    layers: int = 12
    width: int = 512
    heads: int = 8
    context_length: int = 77


@dataclass
class ModelConfig:
    """The dual encoder.

    Parameters
    ----------
    embed_dim : channels of the joint embedding
    image_size : pixels a side of the square that the image tower sees
    activation : quick_gelu (x * sigmoid(1.702 x), the released weights') or gelu
    objective : contrastive (InfoNCE over the global batch) or sigmoid (SigLIP: each pair by itself, and a learned bias)
    init_temperature : temperature at the start; the logit scale is its inverse
    init_logit_bias : sigmoid: the bias at the start
    max_logit_scale : the logit scale is clamped here after each step
    vision, text : the two towers
    vocab_size : entries of the tokenizer; 0: taken from the tokenizer
    """

    embed_dim: int = 512
    image_size: int = 224
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    objective: Literal["contrastive", "sigmoid"] = "contrastive"
    init_temperature: float = 0.07
    init_logit_bias: float = -10.0
    max_logit_scale: float = 100.0
    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    vocab_size: int = 0


@dataclass
class OptimConfig:
    """AdamW, linear warm-up, cosine decay to zero.

    Parameters
    ----------
    lr : learning rate at its peak
    warmup_steps : optimiser steps from 0 to the peak
    weight_decay : decoupled; on weight matrices and kernels only, never on gains, biases or the logit scale
    beta1, beta2, eps : Adam's
    max_grad_norm : gradients of a larger L2 norm, over all weights, are scaled down to it; 0: never
    learn_temperature : false: the temperature stays at model.init_temperature
    """

    lr: float = 5e-4
    warmup_steps: int = 2000
    weight_decay: float = 0.2
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-6
    max_grad_norm: float = 0.0
    learn_temperature: bool = True


@dataclass
class TrainConfig:
    """How long, on what, and how safely.

    Parameters
    ----------
    init : model to start from: a model directory, or a published model (a folder, a state dict or hf://owner/name). Its
        tokenizer is taken with it; its sizes must be this configuration's, but for model.image_size. Empty: random
        weights
    epochs : passes over the training data
    max_steps : optimiser steps at most; 0: as many as the epochs hold
    global_batch : image-text pairs a step, over all workers, whatever their number
    half_resolution : share of the steps, from the first on, that train on pictures of half the side (squares of four
        pixels averaged), for which the image tower's part of a step costs a quarter; in [0, 1)
    micro_batch : pairs that a worker passes through the towers at once; its part of the global batch is embedded first,
        then gradients are made chunk by chunk, equal to those of the whole. 0: all at once
    num_workers : training processes; a range such as 2..8 starts with what the cluster has room for and grows and
        shrinks with it. On a cluster without GPUs choose cpus_per_worker so that a full node keeps a CPU for reading
    resize_every_s : seconds from one look for room for more training processes to the next
    parallel : ddp (each worker holds the whole model) or fsdp (weights, gradients and moments are sharded over them)
    device : auto (a GPU a worker where the cluster has any), gpu, or cpu
    cpus_per_worker : logical CPUs that one training process reserves
    gpus_per_worker : GPUs that it reserves where it trains on one: 1, or a part of one that other runs share, such as
        trials of a study; then num_workers must be 1
    torch_threads : CPU threads of one training process; 0: this node's cores shared among its training processes
    precision : fp32 (on a GPU torch still lets convolutions round to TF32); bf16 (autocast); pure_bf16 (bf16, and the
        text tower's weights and Adam's moments are kept in bf16 too, rounded stochastically: the paper's way to save
        memory); auto: bf16 on a GPU and on a CPU whose bf16 arithmetic is the faster one, else fp32
    checkpoint_activations : keep only each block's input for the backward pass and compute the rest again: less memory,
        about a third more work, the same result
    compile : have torch.compile fuse each block's operations; needs a C++ compiler on the training nodes. auto: on a
        GPU whose node has one, unless deterministic or fsdp is asked for
    trace : with every checkpoint, write which samples each step trained on since the one before, to trace/*.jsonl of
        the run: {step, samples: [[epoch, shard, index], ...]}
    deterministic : the same data in the same order and deterministic kernels: a continued run equals one that never
        stopped, to the bit, on the same number of workers. Every worker then reads all the data
    checkpoint_every : optimiser steps from one checkpoint to the next
    keep_checkpoints : newest checkpoints kept
    max_failed_checkpoints : checkpoints in a row that may fail before the run stops
    max_failures : failures of workers or nodes survived before the run stops
    max_skipped_steps : steps in a row without a finite loss and gradient that are skipped before the run goes back to
        its last checkpoint
    max_rollbacks : times that it goes back before it stops
    log_every : optimiser steps from one line of metrics.jsonl to the next
    """

    init: str = ""
    epochs: int = 32
    max_steps: int = 0
    global_batch: int = 32768
    half_resolution: float = 0.0
    micro_batch: int = 0
    num_workers: int | str = 1
    resize_every_s: float = 60.0
    parallel: Literal["ddp", "fsdp"] = "ddp"
    device: Literal["auto", "gpu", "cpu"] = "auto"
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 1.0
    torch_threads: int = 0
    precision: Literal["auto", "fp32", "bf16", "pure_bf16"] = "auto"
    checkpoint_activations: bool = False
    compile: bool | Literal["auto"] = "auto"
    trace: bool = False
    deterministic: bool = False
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    max_failed_checkpoints: int = 3
    max_failures: int = 3
    max_skipped_steps: int = 3
    max_rollbacks: int = 1
    log_every: int = 10

    @property
    def worker_range(self) -> tuple[int, int]:
        """The fewest and the most training processes.

        Raises
        ------
        ConfigError : num_workers is neither a number nor a range
        """
        low, dots, high = str(self.num_workers).partition("..")
        try:
            return int(low), int(high if dots else low)
        except ValueError:
            raise ConfigError(f"train.num_workers={self.num_workers!r}: a number or a range such as 2..8") from None


@dataclass
class EvaluationConfig:
    """What is measured once training ends.

    Parameters
    ----------
    zero_shot : evaluation sets by name: the URI of a folder in CLIP_benchmark's WebDataset layout
    split : the split of each set that is measured
    templates : prompt templates with {c} for the class name; empty: the set's own
    batch_size : pictures embedded at once
    """

    zero_shot: dict[str, str] = field(default_factory=dict)
    split: str = "test"
    templates: list[str] = field(default_factory=list)
    batch_size: int = 256


@dataclass
class PlacementConfig:
    """Which nodes of a cluster each kind of work runs on.

    Each is a selector of Ray's node labels: label -> value, or `!value`, `in(a, b)`, `!in(a, b)`; all must fit. Empty:
    any node. On the one node of a Ray that a job starts itself it does not count.

    Parameters
    ----------
    data : for reading and decoding
    train : for training processes, and for embedding and measuring with a trained model
    """

    data: dict[str, str] = field(default_factory=dict)
    train: dict[str, str] = field(default_factory=dict)


@dataclass
class RunConfig:
    """The run's name and place.

    Parameters
    ----------
    name : the run's folder under storage_path; a run of the same name continues from its last checkpoint
    storage_path : URI or path of the folder of all runs; every node must reach it
    resume : auto (continue if there is something to continue), must, or never (refuse a name in use)
    storage_patience_s : seconds for which storage that cannot be reached, or is full, is tried again: in reading shards
        and in reading and writing checkpoints
    trackers : mlflow, wandb: the run's metrics go there too, besides its folder and Ray's metrics endpoint
    seed : of initial weights, shard order, crops and captions
    """

    name: str = "run"
    storage_path: str = "runs"
    resume: Literal["never", "auto", "must"] = "auto"
    storage_patience_s: float = 300.0
    trackers: list[Literal["mlflow", "wandb"]] = field(default_factory=list)
    seed: int = 0


@dataclass
class Config:
    """A whole run."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    placement: PlacementConfig = field(default_factory=PlacementConfig)

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def validate(self) -> None:
        """Raise ConfigError for the first value or combination that cannot work."""
        for check in (_check_model, _check_data, _check_training, _check_placement):
            check(self)


def _require(condition: bool, key: str, value: Any, cure: str) -> None:
    if not condition:
        raise ConfigError(f"{key}={value!r}: {cure}")


def _check_model(config: Config) -> None:
    model, vision, text = config.model, config.model.vision, config.model.text
    size = model.image_size
    if vision.kind == "vit":
        _require(len(vision.layers) == 1, "model.vision.layers", vision.layers, "a ViT takes one number, e.g. [12]")
        _require(
            vision.patch_size > 0 and size % vision.patch_size == 0,
            "model.vision.patch_size",
            vision.patch_size,
            f"must divide model.image_size={size}",
        )
        _require(
            vision.heads > 0 and vision.width % vision.heads == 0,
            "model.vision.heads",
            vision.heads,
            f"must divide model.vision.width={vision.width}",
        )
    else:
        _require(len(vision.layers) == 4, "model.vision.layers", vision.layers, "a ResNet takes four, e.g. [3,4,6,3]")
        _require(size > 0 and size % 32 == 0, "model.image_size", size, "a ResNet shrinks by 32: take a multiple of 32")
        _require(vision.width % 2 == 0, "model.vision.width", vision.width, "must be even (the stem halves it)")
        _require(
            vision.heads > 0 and vision.width * 32 % vision.heads == 0,
            "model.vision.heads",
            vision.heads,
            f"must divide the pooled channels, 32 * model.vision.width={vision.width * 32}",
        )
    _require(min(vision.layers) > 0, "model.vision.layers", vision.layers, "each must be at least 1")
    _require(
        text.heads > 0 and text.width % text.heads == 0,
        "model.text.heads",
        text.heads,
        f"must divide model.text.width={text.width}",
    )
    _require(
        text.context_length >= 3, "model.text.context_length", text.context_length, "at least 3: [SOS] token [EOS]"
    )
    _require(model.init_temperature > 0, "model.init_temperature", model.init_temperature, "must be above 0")
    _require(
        1 / model.init_temperature <= model.max_logit_scale,
        "model.init_temperature",
        model.init_temperature,
        f"its inverse must not exceed model.max_logit_scale={model.max_logit_scale}",
    )
    if config.tokenizer.kind == "clip":
        vocab = config.tokenizer.vocab_size
        _require(vocab == 49408, "tokenizer.vocab_size", vocab, "the released vocabulary has 49408; set that")
    else:
        vocab = config.tokenizer.vocab_size
        _require(vocab >= 514, "tokenizer.vocab_size", vocab, "at least 514: 2 x 256 byte symbols and 2 specials")


def _check_half_resolution(config: Config) -> None:
    share, model = config.train.half_resolution, config.model
    _require(0 <= share < 1, "train.half_resolution", share, "a share of the steps, in [0, 1)")
    smallest = 32 if model.vision.kind == "resnet" else model.vision.patch_size
    _require(
        not share or model.image_size % (2 * smallest) == 0,
        "train.half_resolution",
        share,
        f"half of model.image_size={model.image_size} is no multiple of {smallest}; take 0, or another size",
    )


def _check_data(config: Config) -> None:
    data = config.data
    _require(
        bool(data.train), "data.train", data.train, "name the training shards, e.g. 's3://bucket/{00000..00099}.tar'"
    )
    _require(data.interleave >= 1, "data.interleave", data.interleave, "at least 1 shard")
    _require(data.shuffle_buffer >= 1, "data.shuffle_buffer", data.shuffle_buffer, "at least 1 sample")
    _require(0 < data.crop_scale <= 1, "data.crop_scale", data.crop_scale, "a share of the area, in (0, 1]")
    _require(0 <= data.max_reject_share <= 1, "data.max_reject_share", data.max_reject_share, "a share, in [0, 1]")
    _require(data.max_pixels > 0, "data.max_pixels", data.max_pixels, "at least 1 pixel")
    _require(data.cpus_per_reader > 0, "data.cpus_per_reader", data.cpus_per_reader, "above 0")


def _check_training(config: Config) -> None:
    train, optim, run = config.train, config.optim, config.run
    fewest, most = train.worker_range
    _require(1 <= fewest <= most, "train.num_workers", train.num_workers, "at least 1, the fewest before the most")
    _require(
        train.global_batch >= 2 * most,
        "train.global_batch",
        train.global_batch,
        f"at least 2 for each of train.num_workers={train.num_workers}",
    )
    _check_half_resolution(config)
    _require(train.micro_batch >= 0, "train.micro_batch", train.micro_batch, "0 (all at once) or more")
    _require(
        train.parallel == "ddp" or train.precision != "pure_bf16",
        "train.parallel",
        train.parallel,
        "pure_bf16 rounds whole weights; take ddp, or another train.precision",
    )
    _require(train.epochs >= 1, "train.epochs", train.epochs, "at least 1")
    _require(train.max_steps >= 0, "train.max_steps", train.max_steps, "0 (no limit) or more")
    _require(train.checkpoint_every >= 1, "train.checkpoint_every", train.checkpoint_every, "at least 1 step")
    _require(train.keep_checkpoints >= 1, "train.keep_checkpoints", train.keep_checkpoints, "at least 1")
    _require(train.log_every >= 1, "train.log_every", train.log_every, "at least 1 step")
    for key in ("max_failures", "max_skipped_steps", "max_rollbacks", "resize_every_s"):
        _require(getattr(train, key) >= 0, f"train.{key}", getattr(train, key), "0 or more")
    _require(
        train.max_failed_checkpoints >= 1, "train.max_failed_checkpoints", train.max_failed_checkpoints, "1 or more"
    )
    _require(optim.max_grad_norm >= 0, "optim.max_grad_norm", optim.max_grad_norm, "0 (never) or more")
    _require(train.cpus_per_worker > 0, "train.cpus_per_worker", train.cpus_per_worker, "above 0")
    _require(0 < train.gpus_per_worker <= 1, "train.gpus_per_worker", train.gpus_per_worker, "above 0, at most 1")
    _require(
        train.gpus_per_worker == 1 or most == 1, "train.gpus_per_worker", train.gpus_per_worker,
        "NCCL takes one training process a GPU: a part of one needs train.num_workers=1",
    )  # fmt: skip
    _require(optim.lr > 0, "optim.lr", optim.lr, "above 0")
    _require(optim.warmup_steps >= 0, "optim.warmup_steps", optim.warmup_steps, "0 or more")
    _require(optim.weight_decay >= 0, "optim.weight_decay", optim.weight_decay, "0 or more")
    for key, value in (("optim.beta1", optim.beta1), ("optim.beta2", optim.beta2)):
        _require(0 <= value < 1, key, value, "in [0, 1)")
    _require(
        bool(run.name) and "/" not in run.name and run.name not in (".", ".."),
        "run.name",
        run.name,
        "a folder's name, without '/'",
    )
    _require(run.storage_patience_s >= 0, "run.storage_patience_s", run.storage_patience_s, "0 or more")
    _require(bool(run.storage_path), "run.storage_path", run.storage_path, "a folder or URI for all runs")
    for template in config.evaluation.templates:
        _require("{c}" in template, "evaluation.templates", template, "a template needs {c} for the class name")


def _check_placement(config: Config) -> None:
    for key, selector in dataclasses.asdict(config.placement).items():
        try:
            placement.check(selector)
        except ValueError as error:
            raise ConfigError(f"placement.{key}={selector!r}: {error}") from None
