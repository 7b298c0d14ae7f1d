"""Everything one distillation run can be told, with ranges and the reason for each default.

The classes are frozen: a changed configuration is a new one (`with_overrides`). Their attributes are all the
library reads, so on a machine without pydantic any object with the same attributes serves
(`sam3dist.config.plain`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from sam3dist.config.base import Settings
from sam3dist.config.objective import ObjectiveConfig

Positive = Annotated[int, Field(ge=1)]


class TeacherConfig(Settings):
    """Which teacher, and in which precision it answers."""

    source: str = "embedded"
    """"embedded" (ships with the package), a Hugging Face id, a local directory, or Meta's sam3.pt.
    For `sam3dist teach` also a SAM (1), or FILE.py:NAME, what a file of yours makes."""
    adapter: str | None = None
    """Directory of a LoRA adapter (peft) for a SAM teacher; None has none."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 where the device computes it fast, else fp32."""
    geometry_token: bool | None = None
    """Ask with the prompt token that SAM3 makes of no boxes, as Meta does and transformers does not; null does so where
    the geometry encoder has been trained, as in facebook/sam3 and sam3.pt."""
    mode: Literal["online", "stored"] = "online"
    """online asks the teacher in every step; stored reads what `sam3dist teach` wrote once for all runs."""
    answers: str | None = None
    """Directory of the stored answers; None is `answers` inside data.train."""
    workers: int = Field(0, ge=0)
    """Processes that hold the teacher and answer online, each with the CPUs and the GPU of a training worker, shared by
    all trials of a search; 0 asks it in every training worker."""


class StudentSpec(Settings):
    """The student's shape. None keeps what the teacher has, so an empty spec is a copy of the teacher."""

    image_size: int | None = Field(None, ge=28, le=2048)
    """Side of the square input in pixels; a multiple of the patch size, with a backbone of 32, and then null is the
    multiple nearest to the teacher's."""
    backbone: str | None = None
    """A timm network in place of the teacher's vision transformer, such as repvit_m1_1, tiny_vit_11m_224,
    efficientvit_b1, mobilenetv4_conv_medium or fastvit_sa12; null keeps the transformer, shaped by vision_*."""
    backbone_weights: str | None = None
    """Where the backbone starts: "pretrained" is what timm publishes for it, else a file of timm's; null draws it
    at random."""
    neck: Literal["pyramid", "sam3"] | None = None
    """What makes three levels of the backbone's maps: pyramid (the default of a backbone) adds up all of them, sam3
    widens the deepest to the teacher's own neck, at 17 million parameters more."""
    vision_width: int | None = Field(None, ge=8, le=4096)
    """Channels of the vision transformer."""
    vision_depth: int | None = Field(None, ge=1, le=128)
    """Layers of the vision transformer."""
    vision_heads: int | None = Field(None, ge=1, le=64)
    """Attention heads; None keeps the teacher's channels per head."""
    vision_mlp: int | None = Field(None, ge=8)
    """Hidden channels of each vision MLP; None keeps the teacher's ratio to the width."""
    detr_width: int | None = Field(None, ge=8, le=1024)
    """Channels of the neck, the DETR encoder and decoder, and the mask decoder."""
    detr_mlp: int | None = Field(None, ge=8)
    """Hidden channels of each DETR MLP; None keeps the teacher's ratio to the width."""
    encoder_layers: int | None = Field(None, ge=1, le=24)
    """Layers of the DETR encoder, in which the image meets the phrase."""
    decoder_layers: int | None = Field(None, ge=1, le=24)
    """Layers of the DETR decoder, which makes instances of the queries."""
    num_queries: int | None = Field(None, ge=1, le=900)
    """Most instances a phrase can have."""
    text_width: int | None = Field(None, ge=8, le=4096)
    """Channels of the text encoder."""
    text_depth: int | None = Field(None, ge=1, le=48)
    """Layers of the text encoder."""
    text_tower: str | None = None
    """Kind of text encoder: clip is the teacher's, causal; lite reads in both directions; repmixer is lite with
    convolutions in its first and last layer, as in MobileCLIP-S0 (of both, text_width is by default 512 and text_depth
    6); or the name of a MobileCLIP of open_clip, such as MobileCLIP2-S0. Null keeps the teacher's."""
    text_weights: str | None = None
    """Where a text tower of open_clip starts: a tag that open_clip publishes, or a checkpoint of such a model; null
    draws it at random."""
    like: str | None = None
    """Network of SAM3's architecture that the nulls here mean and that init starts from; None is teacher.source itself.
    For teachers of another architecture, whose answers are stored, and to prune in steps: the run directory of a larger
    student of the same teacher."""
    init: Literal["random", "copy", "svd", "pca", "importance"] = "pca"
    """random: start from nothing; copy: every weight that fits, layers and channels evenly chosen; svd: chosen by the
    weights alone; pca: by what the teacher computes from a few images, streams in the basis of their principal
    directions; importance: by how far the teacher's answers move without a layer, head or channel."""
    calibration_images: int = Field(32, ge=1, le=4096)
    """Training images at which init=pca and init=importance look before the run."""


class DataConfig(Settings):
    """Which shards, and how many images and phrases a step sees."""

    train: str | None = None
    """Directory of training shards (`sam3dist prepare`); None uses the generated scenes."""
    val: str | None = None
    """Directory of validation shards; None uses the generated scenes."""
    images_per_batch: int = Field(8, ge=1, le=1024)
    """Images per worker and step."""
    prompts_per_image: int = Field(4, ge=1, le=256)
    """Phrases drawn per image and step; the vision encoder runs once per image whatever this is."""
    negative_share: float = Field(0.33, ge=0, le=1)
    """Wanted share of phrases that name nothing in their image, as far as the image has any."""
    horizontal_flip: bool = False
    """Mirror half of the images. Off by default: phrases may say left or right."""
    crop_share: float = Field(1.0, gt=0, le=1)
    """Least share of an image's area that a random crop keeps; 1 keeps all of it, as stored answers need."""
    colour_jitter: float = Field(0.0, ge=0, lt=1)
    """Greatest change of brightness, contrast and saturation of an image, each drawn anew: 0.4 is from 60 to 140 %."""
    decode_threads: int = Field(2, ge=1, le=128)
    """Threads that decode in each worker."""
    prefetch_batches: int = Field(2, ge=1, le=64)
    """Batches that are made ahead of the network."""
    max_pixels: int = Field(50_000_000, ge=1)
    """Images with more pixels are set aside before decoding."""
    max_rejected_share: float = Field(0.05, ge=0, le=1)
    """More rows set aside than this share fails the run."""


class TaskWeights(Settings):
    """Weights of the task terms, as SAM3 trains them; the teacher's answers are weighed by the same."""

    classification: float = Field(20.0, ge=0)
    """Whether each query is an instance, and how well its box fits."""
    presence: float = Field(20.0, ge=0)
    """Whether the phrase names anything in the image."""
    box_l1: float = Field(5.0, ge=0)
    """Distance of the matched boxes in centre and size, in shares of the image."""
    box_giou: float = Field(2.0, ge=0)
    """1 minus the generalised IoU of the matched boxes."""
    mask: float = Field(200.0, ge=0)
    """Focal or BCE over the matched masks; divided by mask cells, hence large."""
    dice: float = Field(10.0, ge=0)
    """Dice loss of the matched masks."""
    semantic: float = Field(20.0, ge=0)
    """Focal loss of the semantic map, the union of all instances."""
    semantic_dice: float = Field(30.0, ge=0)
    """Dice loss of the semantic map."""
    mask_kind: Literal["focal", "bce"] = "focal"
    """focal as SAM3 does, or plain binary cross entropy, scaled to a like size."""
    auxiliary: float = Field(1.0, ge=0)
    """Weight of class, presence and box terms on the decoder layers before the last."""


class DistillationConfig(Settings):
    """loss = alpha * task + beta * distillation + gamma * feature."""

    alpha: float = Field(1.0, ge=0)
    """Weight of the task loss against ground truth."""
    beta: float = Field(1.0, ge=0)
    """Weight of the teacher's answers; 0 together with gamma=0 trains on labels alone, without asking the teacher."""
    gamma: float = Field(1.0, ge=0)
    """Weight of the feature loss; 0 leaves the projections out."""
    temperature: float = Field(2.0, gt=0, le=100)
    """Divides teacher and student logits before they are compared; 1 leaves them unchanged."""
    features: tuple[Literal["vision", "encoder"], ...] = ("vision", "encoder")
    """Which features of the teacher the student imitates."""
    task: TaskWeights = TaskWeights()

    @model_validator(mode="after")
    def _something_teaches(self) -> DistillationConfig:
        if self.alpha == 0 and self.beta == 0 and (self.gamma == 0 or not self.features):
            raise ValueError("distillation.alpha, beta and gamma leave no loss to train on; set one of them above 0.")
        if self.gamma > 0 and not self.features:
            raise ValueError(
                f"distillation.gamma={self.gamma:g} weighs features, but distillation.features is empty; "
                "name some, or set gamma=0."
            )
        return self


class OptimConfig(Settings):
    """AdamW with linear warm-up and cosine decay."""

    steps: int = Field(1000, ge=1)
    """Optimizer updates of the whole run."""
    learning_rate: float = Field(5e-4, gt=0, lt=1)
    """At its peak, after the warm-up."""
    weight_decay: float = Field(0.01, ge=0, lt=1)
    """Of the weights of linear layers and convolutions; nothing else decays."""
    warmup_steps: int = Field(50, ge=0)
    """Updates in which the learning rate climbs to its peak."""
    final_lr_share: float = Field(0.02, ge=0, le=1)
    """Learning rate at the end over the peak."""
    clip_grad_norm: float = Field(1.0, gt=0)
    """A gradient whose norm over all weights is greater is scaled down to this."""
    max_skipped_steps: int = Field(3, ge=0)
    """Updates in a row that are left out because a loss or gradient is not finite; one more ends the run."""
    accumulate: int = Field(1, ge=1)
    """Batches whose gradients add up to one update."""
    gradient_checkpointing: bool = False
    """Compute activations of the transformer layers again in the backward pass instead of keeping them: SAM3's image
    tower holds a tenth, and a step takes about 1.2 times as long."""


class EvalConfig(Settings):
    """When and how quality is measured."""

    every_steps: int = Field(200, ge=1)
    """Updates between evaluations; one more follows the last update."""
    threshold: float = Field(0.5, gt=0, lt=1)
    """A query is kept when sigmoid(query) * sigmoid(presence) reaches this; Meta uses 0.5."""
    max_images: int | None = Field(None, ge=1)
    """Evaluate on the first this many images while training; None takes all."""
    images_per_batch: int = Field(8, ge=1)
    """Most images of a batch."""
    prompts_per_batch: int = Field(32, ge=1)
    """Most phrases of a batch: their mask logits, not the images, fill the memory."""


class CheckpointConfig(Settings):
    """When a run is saved, and how much of that stays."""

    every_steps: int = Field(200, ge=1)
    """A crash loses at most this many steps."""
    keep: int = Field(2, ge=1)
    """Newest checkpoints that stay, beside that of the best evaluation; a trial of a search keeps one."""
    storage_path: str | None = None
    """Where checkpoints are kept: a directory that all nodes share, or s3://BUCKET/PREFIX (with
    ?endpoint_override=http://HOST:PORT for a store that is not Amazon's); null is the run directory."""


class _Strategy(Settings):
    """What every strategy can be told."""

    num_workers: Positive = 1
    """Processes that train one student together, each on its share of the images."""
    min_workers: int | None = Field(None, ge=1)
    """Fewest processes to go on with after nodes are lost, or to begin with before all have come; null is all of
    them. The images of a step are then fewer, too."""
    cpus_per_worker: float = Field(1.0, gt=0)
    """CPUs that Ray reserves for each worker; it computes with as many threads."""
    use_gpu: bool = False
    """One GPU for each worker."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 where a probe shows that the device computes it fast, else fp32. fp16 is for GPUs without bf16: losses
    are scaled so that gradients neither vanish nor overflow, and weights stay in float32 like those of the others."""
    max_failures: int = Field(2, ge=0)
    """Worker groups lost in a row, without a new checkpoint in between, before the run gives up; each restart resumes
    from the last checkpoint."""


class DdpConfig(_Strategy):
    """Every worker holds the whole student."""

    kind: Literal["ddp"] = "ddp"
    """How the workers share the student."""


class FsdpConfig(_Strategy):
    """FSDP2: parameters, gradients and optimizer state sharded."""

    kind: Literal["fsdp"] = "fsdp"
    """How the workers share the student."""
    reshard_after_forward: bool = True
    """Give gathered weights back after the forward pass: less memory, but they are gathered twice."""
    offload: bool = False
    """Keep shards of parameters, gradients and optimizer state in the memory of the CPU, which updates them; layers are
    copied to the GPU when their turn comes."""


class DeepSpeedConfig(_Strategy):
    """DeepSpeed ZeRO."""

    kind: Literal["deepspeed"] = "deepspeed"
    """How the workers share the student."""
    zero_stage: Literal[1, 2, 3] = 2
    """1 shards the optimizer's state, 2 the gradients too, 3 the weights as well."""
    offload: Literal["optimizer", "all"] | None = None
    """What lies in the memory of the CPU: nothing (none); optimizer: its state, and the weights that it updates, with
    torch's AdamW, so that nothing is compiled; all: the shards of the network's own weights, too (zero_stage=3)."""

    @model_validator(mode="after")
    def _only_shards_can_wait_elsewhere(self) -> DeepSpeedConfig:
        if self.offload == "all" and self.zero_stage != 3:
            raise ValueError(
                f"strategy.offload=all: zero_stage={self.zero_stage} keeps the weights whole on every worker; set "
                "strategy.zero_stage=3, or strategy.offload=optimizer."
            )
        return self


StrategyConfig = Annotated[DdpConfig | FsdpConfig | DeepSpeedConfig, Field(discriminator="kind")]


class RunConfig(Settings):
    """Where a run is written, what it tells, and the cluster it runs on."""

    dir: str | None = None
    """Where everything is written; None makes runs/VERB-NAME. The same directory again resumes."""
    resume: str | None = None
    """run.dir of a run that was cut short; unlike there, a mistyped one is refused."""
    seed: int = Field(0, ge=0)
    """Draws the weights that do not come from the teacher, the order of the images, and the generated scenes."""
    loggers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    """Trackers that get the curves, which history.jsonl has in any case."""
    figures: int = Field(4, ge=0, le=64)
    """Images drawn in the report."""
    log_every_steps: int = Field(10, ge=1)
    """Updates between points of the curves, each of which is the mean since the last."""
    address: str | None = None
    """Ray cluster to join; None starts one on this machine, or uses the one of `ray job submit`."""
    num_cpus: float | None = Field(None, gt=0)
    """CPUs a cluster started here offers; None counts the machine's."""
    wait_for_nodes_s: float = Field(0, ge=0)
    """How long an autoscaling cluster may take to grow to what the run asks for; 0 gives up at once."""

    @model_validator(mode="before")
    @classmethod
    def _resumes_in_its_directory(cls, given: dict[str, Any]) -> dict[str, Any]:
        resume, directory = given.get("resume"), given.get("dir")
        if resume is None:
            return given
        if directory not in (None, resume):
            raise ValueError(f"run.resume={resume}: contradicts run.dir={directory}; give one of them.")
        return {**given, "dir": resume}


class DistillConfig(Settings):
    """One distillation run."""

    name: str = "distill"
    """Names the run directory, where run.dir does not, and the run in its trackers."""
    teacher: TeacherConfig = TeacherConfig()
    student: StudentSpec = StudentSpec()
    data: DataConfig = DataConfig()
    distillation: DistillationConfig = DistillationConfig()
    optim: OptimConfig = OptimConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    strategy: StrategyConfig = DdpConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    run: RunConfig = RunConfig()
