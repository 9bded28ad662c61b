"""The config file as frozen models; the text under a field is its documentation everywhere."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, StringConstraints, Tag, model_validator

from quantcfg.config.calibration import Candidates, CompareBy
from quantcfg.config.conditions import CONDITION_PATTERN, SIZE_PATTERN
from quantcfg.config.forms import (
    compares_something,
    kind_of_rule,
    kind_of_staged,
    kind_of_table,
    kind_of_template,
    kind_of_value,
    one_length_of_calibration,
    one_length_of_training,
    one_number_of_ops,
)
from quantcfg.config.parameters import DType
from quantcfg.config.section import LIST, Count, Fraction, Positive, Section
from quantcfg.config.training import SGD, Best, Distill, Optimizer, Schedule, Scheduler

FakeQuantName = Literal["fake_quant", "lsq", "pact"]
ObserverName = Literal["min_max", "fixed_scale", "clip", "percentile", "clip_std", "mse", "kl", "mix"]
TemplateName = Literal["high_precision_output", "softmax_int16", "layer_norm_int16", "grid_sample_int16"]
QKwargs = dict[str, Any]
"""Typed by `quantcfg.config.parameters` once it is known which observer and fake quantize they are for."""
Condition = Annotated[str, StringConstraints(pattern=CONDITION_PATTERN)]
SizeCondition = Annotated[str, StringConstraints(pattern=SIZE_PATTERN)]


class QConfigFields(Section):
    """A qconfig written out: a preset to start from and the fields that differ from it."""

    form: ClassVar[str] = "fields"

    preset: str | None = None
    """A preset or a name under `qconfigs` to start from; `inherit`: what would have won without this rule."""
    activation_fake_quant: FakeQuantName | None = "fake_quant"
    """How outputs are fake quantized; null leaves them in float (the 32-bit output)."""
    weight_fake_quant: FakeQuantName | None = "fake_quant"
    """How weights are fake quantized; null leaves them in float."""
    activation_observer: ObserverName | None = "min_max"
    """How the range of outputs is found."""
    weight_observer: ObserverName | None = "min_max"
    """How the range of weights is found."""
    activation_qkwargs: QKwargs = Field(default_factory=dict)
    """Parameters of the activation's observer and fake quantize."""
    weight_qkwargs: QKwargs = Field(default_factory=dict)
    """Parameters of the weight's observer and fake quantize; per channel on axis 0 unless told otherwise."""


QConfigValue = Annotated[
    Annotated[str, Tag("name")] | Annotated[None, Tag("float")] | Annotated[QConfigFields, Tag("fields")],
    Discriminator(kind_of_value),
]


class StageValues(Section):
    """A qconfig that differs by stage."""

    form: ClassVar[str] = "stages"

    calib: QConfigValue
    """The qconfig while calibrating."""
    qat: QConfigValue
    """The qconfig while training."""


StagedValue = Annotated[
    Annotated[str, Tag("name")]
    | Annotated[None, Tag("float")]
    | Annotated[QConfigFields, Tag("fields")]
    | Annotated[StageValues, Tag("stages")],
    Discriminator(kind_of_staged),
]


class RuleOptions(Section):
    """A qconfig for a type or a name, with what is expected of the rule."""

    form: ClassVar[str] = "rule"

    use: StagedValue
    """The qconfig; null leaves in float."""
    optional: bool = False
    """The rule may match nothing."""
    expect: Annotated[int, Field(ge=0)] | None = None
    """How many modules and ops of the model the rule must match."""
    subclasses: bool = False
    """Under `module_type`: match the classes derived from this one, too; the nearest class wins."""


RuleValue = Annotated[
    Annotated[str, Tag("name")]
    | Annotated[None, Tag("float")]
    | Annotated[QConfigFields, Tag("fields")]
    | Annotated[StageValues, Tag("stages")]
    | Annotated[RuleOptions, Tag("rule")],
    Discriminator(kind_of_rule),
]


class SensitiveOps(Section):
    """The most sensitive ops of a table get a qconfig of their own, unless a rule names them."""

    form: ClassVar[str] = "sensitive"

    name: Literal["sensitive_ops"]
    """Which template this is."""
    table: Annotated[
        Annotated[str, Tag("file")] | Annotated[list[list[Any]], Tag("rows")], Discriminator(kind_of_table)
    ]
    """A .json, .yaml or .yml file beside this one, or its rows, the worst first:
    `[op, activation or weight, type, metric, dtype]`; what follows the first two may be left out."""
    use: StagedValue
    """The qconfig of the chosen ops; `{preset: inherit, ...}` changes only some fields of what they have."""
    topk: Count | None = None
    """How many ops."""
    ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    """Instead of `topk`: which share of the rows of this type and dtype, rounded up."""
    sensitive_type: Literal["activation", "weight"] = "activation"
    """Only rows about activations, or only those about weights."""
    origin_dtype: DType | None = None
    """Only rows of this dtype; null: of any."""

    _one_number = model_validator(mode="after")(one_number_of_ops)


TemplateValue = Annotated[
    Annotated[TemplateName, Tag("name")] | Annotated[SensitiveOps, Tag("sensitive")],
    Discriminator(kind_of_template),
]


class Rules(Section):
    """Which op gets which qconfig. Rising: global, module_type, patterns of module_name, exact names."""

    global_: StagedValue = Field(default=None, alias="global")
    """The qconfig of every op that no other rule speaks of."""
    module_type: dict[str, RuleValue] = Field(default_factory=dict)
    """By class: `torch.nn.Linear`, `Linear` or one of your own. Holds for everything inside."""
    module_name: dict[str, RuleValue] = Field(default_factory=dict)
    """By name or pattern (`*`, `**`, `?`, `{a,b}`, `{2..9}`, `re:`), later wins. Holds for all inside."""
    templates: Annotated[tuple[TemplateValue, ...], LIST] = ()
    """Refinements that look at the graph of the model, or at a table of sensitive ops."""


class CalibSection(Section):
    """Calibration: batches run through the observers, nothing is trained."""

    batches: Count | None = None
    """How many batches; all of `calib_data` when neither this nor `samples` is given."""
    samples: Count | None = None
    """How many samples, instead of `batches`; the last batch is cut."""
    nonfinite: Literal["error", "skip"] = "error"
    """What a NaN or infinity does: end the run naming op and batch, or be left out and counted."""
    compare: Candidates | None = None
    """Observers to compare in one pass; the best replace those of the rules. Null: the rules decide."""
    compare_by: CompareBy | None = None
    """Compare by a metric on `eval_data`; null: by the quantization error of the calibration data."""
    compare_per: Literal["op", "model"] = "op"
    """Whether each op gets the observers that are best for it, or all get the same."""
    qconfig: Rules = Rules.model_construct()
    """Rules of this stage alone, merged over the shared ones."""

    _one_length = model_validator(mode="after")(one_length_of_calibration)

    _compares_something = model_validator(mode="after")(compares_something)


class QatSection(Section):
    """Quantization-aware training."""

    epochs: Count = 1
    """Passes over `train_data`."""
    steps: Count | None = None
    """Optimizer steps, instead of `epochs`."""
    optimizer: Optimizer = SGD.model_construct(name="SGD", lr=1e-4, momentum=0.9)
    """The optimizer, unless the model file brings one."""
    scheduler: Scheduler | None = None
    """How the learning rate moves; null: it stays."""
    bn: Literal["fold", "keep", "freeze"] = "fold"
    """Batch norms: folded into the convolution, kept and trained, or kept with frozen statistics."""
    schedule: Schedule = Schedule.model_construct()
    """When observers and batch norms freeze."""
    grad_clip: Positive | None = None
    """Largest norm of the gradient; null: not clipped."""
    accumulate: Count = 1
    """Batches whose mean gradient makes one optimizer step; the last step of an epoch takes what is left."""
    autocast: Literal["bfloat16", "float16"] | None = None
    """The dtype that matrix products and convolutions train in; evaluation stays in float32."""
    ema: Fraction | None = None
    """Decay of a moving average of the weights, which is what is evaluated and kept; null: none."""
    distill: Distill | None = None
    """Learn from the outputs of the float model as well; null: from the targets alone."""
    eval_every: Count | None = None
    """Optimizer steps between two evaluations, beside those at the end of each epoch."""
    check_ranks_every: Count = 100
    """Under torchrun: optimizer steps between two comparisons of all ranks' qparams and weights."""
    best: Best | None = None
    """Keep the best model by a metric, and stop early; null: the last one is kept."""
    qconfig: Rules = Rules.model_construct()
    """Rules of this stage alone, merged over the shared ones."""

    _one_length = model_validator(mode="after")(one_length_of_training)


class ExportSection(Section):
    """The deployable file."""

    format: Literal["onnx", "pt2", "safetensors"] = "onnx"
    """ONNX with QuantizeLinear and DequantizeLinear, torch.export's own, or tensors and a table."""
    target: Literal["generic", "onnxruntime", "tensorrt", "qnn", "openvino", "horizon"] = "generic"
    """Where the model is to run: what that takes is checked before anything is computed."""
    unsupported: Literal["error", "float", "adjust"] = "error"
    """What becomes of what the target does not take: refused, left in float, or put on the nearest grid."""


class OpGuard(Section):
    """What the ops of a name or pattern have to be."""

    activation: DType | Literal["float"] | None = None
    """The dtype of every output there; `float`: not quantized. Null: whatever it is."""
    weight: DType | Literal["float"] | None = None
    """The dtype of every weight there; `float`: not quantized. Null: whatever it is."""


class Guards(Section):
    """Conditions that a plan or run has to meet, such as `">= 0.95"`."""

    quantized_macs: Condition | None = None
    """Share of the multiply-accumulates whose weight and output are quantized."""
    quantized_params: Condition | None = None
    """Share of the parameters that are quantized."""
    quantized_ops: Condition | None = None
    """Share of the ops that are quantized or pass quantized values through."""
    weight_bits: Condition | None = None
    """Bits per parameter on average, 32 for those in float."""
    size: SizeCondition | None = None
    """Size of all parameters with quantized weights packed, such as `"<= 24 MiB"` (B, KiB, MiB, GiB)."""
    ops: dict[str, OpGuard] = Field(default_factory=dict)
    """By name or pattern, for everything inside: the dtypes that ops must have."""
    metric_drop: dict[str, Condition] = Field(default_factory=dict)
    """By metric: float minus quantized."""


class File(Section):
    """A quantcfg config: which op gets which qconfig, and how to calibrate, train and export."""

    version: Literal[1]
    """Version of the format."""
    extends: str | list[str] | None = None
    """Configs (or presets) that this one changes, one or several; later ones win."""
    qconfigs: dict[str, StagedValue] = Field(default_factory=dict)
    """Qconfigs by names of your own, to be used in rules."""
    qconfig: Rules = Rules.model_construct()
    """The rules of both stages."""
    calib: CalibSection = CalibSection.model_construct()
    """Calibration."""
    qat: QatSection = QatSection.model_construct()
    """Quantization-aware training."""
    export: ExportSection = ExportSection.model_construct()
    """Export."""
    guards: Guards = Guards.model_construct()
    """What has to hold, checked before and after a run."""
