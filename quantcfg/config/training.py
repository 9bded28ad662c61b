"""What the `qat` section of the config file is made of: optimizers, schedulers, and when what happens."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from quantcfg.config.forms import momentum_of_nesterov
from quantcfg.config.section import LIST, Count, Fraction, NotNegative, Positive, Section


class OptimizerSection(Section):
    """What every optimizer takes."""

    name: str
    """A class of torch.optim."""
    lr: Positive
    """Learning rate."""
    quantizer_lr: Positive | None = None
    """Learning rate of learned scales and clips (`lsq`, `pact`); null: `lr`."""
    quantizer_weight_decay: NotNegative = 0.0
    """Weight decay of learned scales and clips, which pulls them towards zero."""


class SGD(OptimizerSection):
    """Stochastic gradient descent."""

    name: Literal["SGD"]
    """torch.optim.SGD."""
    momentum: NotNegative = 0.0
    """Momentum."""
    dampening: NotNegative = 0.0
    """Dampening of the momentum."""
    weight_decay: NotNegative = 0.0
    """L2 penalty."""
    nesterov: bool = False
    """Nesterov momentum."""

    _nesterov_has_momentum = model_validator(mode="after")(momentum_of_nesterov)


class AdamSection(OptimizerSection):
    """What Adam and its variants take."""

    betas: Annotated[tuple[Fraction, Fraction], LIST] = (0.9, 0.999)
    """Decay of the averages of the gradient and of its square."""
    eps: Positive = 1e-8
    """Added to the denominator."""
    amsgrad: bool = False
    """The AMSGrad variant."""


class Adam(AdamSection):
    """Adam."""

    name: Literal["Adam"]
    """torch.optim.Adam."""
    weight_decay: NotNegative = 0.0
    """L2 penalty."""


class AdamW(AdamSection):
    """Adam with decoupled weight decay."""

    name: Literal["AdamW"]
    """torch.optim.AdamW."""
    weight_decay: NotNegative = 0.01
    """Decoupled weight decay."""


class RMSprop(OptimizerSection):
    """RMSprop."""

    name: Literal["RMSprop"]
    """torch.optim.RMSprop."""
    alpha: Fraction = 0.99
    """Smoothing of the squared gradient."""
    eps: Positive = 1e-8
    """Added to the denominator."""
    weight_decay: NotNegative = 0.0
    """L2 penalty."""
    momentum: NotNegative = 0.0
    """Momentum."""
    centered: bool = False
    """Normalize by the variance of the gradient."""


Optimizer = Annotated[SGD | Adam | AdamW | RMSprop, Field(discriminator="name")]


class Cosine(Section):
    """From the optimizer's learning rate down to `min_lr` along a half cosine over the whole training."""

    name: Literal["cosine"]
    """torch.optim.lr_scheduler.CosineAnnealingLR, stepped every step."""
    min_lr: NotNegative = 0.0
    """Learning rate at the end."""


class Linear(Section):
    """From `start_factor` to `end_factor` times the optimizer's learning rate over the whole training."""

    name: Literal["linear"]
    """torch.optim.lr_scheduler.LinearLR, stepped every step."""
    start_factor: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor of the first step."""
    end_factor: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Factor at the end."""


class Step(Section):
    """The learning rate times `gamma` every `step_size` epochs."""

    name: Literal["step"]
    """torch.optim.lr_scheduler.StepLR, stepped every epoch."""
    step_size: Count
    """Epochs between two drops."""
    gamma: Positive = 0.1
    """Factor of a drop."""


class MultiStep(Section):
    """The learning rate times `gamma` after each of the given epochs."""

    name: Literal["multistep"]
    """torch.optim.lr_scheduler.MultiStepLR, stepped every epoch."""
    milestones: Annotated[tuple[Count, ...], LIST, Field(min_length=1)]
    """Epochs after which the rate drops."""
    gamma: Positive = 0.1
    """Factor of a drop."""


class OneCycle(Section):
    """Up to `max_lr` and down again over the whole training."""

    name: Literal["onecycle"]
    """torch.optim.lr_scheduler.OneCycleLR, stepped every step."""
    max_lr: Positive
    """Highest learning rate."""
    pct_start: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of the training that goes up."""


Scheduler = Annotated[Cosine | Linear | Step | MultiStep | OneCycle, Field(discriminator="name")]


class Schedule(Section):
    """When parts of the model begin or stop to change while training."""

    freeze_observers_after: Annotated[int, Field(ge=0)] | None = None
    """Epochs after which observers stop; null: never."""
    freeze_bn_after: Annotated[int, Field(ge=0)] | None = None
    """Epochs after which the statistics of batch norms stop; null: never."""
    quantize_activations_after: Annotated[int, Field(ge=0)] = 0
    """Epochs that train with quantized weights alone, before activations are quantized too."""


class Best(Section):
    """Which of the evaluated models a training keeps, and when it gives up waiting for a better one."""

    metric: str
    """A metric of `evaluate`; `accuracy` or `loss` without one."""
    mode: Literal["max", "min"] = "max"
    """Whether larger or smaller is better."""
    patience: Count | None = None
    """Evaluations in a row without a better one that end the training; null: never."""


class Distill(Section):
    """Knowledge distillation: the class scores of the float model are targets too."""

    weight: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the distillation in the loss; the rest is the loss of the targets."""
    temperature: Positive = 2.0
    """What scores are divided by before the softmax; its square multiplies the distillation loss."""
