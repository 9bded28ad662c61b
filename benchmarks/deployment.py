"""Export real architectures and print what the file, the integer model and the fake-quant model agree on.

Random weights, batch norms with statistics of their own inputs, calibrated on noise: what is compared is
arithmetic, not accuracy. ``top-1`` is how often a model ranks the same class first as the float one. Needs
torchvision and transformers, as `make models` installs them.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

import quantcfg as qc
from quantcfg.export import onnx_file
from quantcfg.export.calls import Call, varying_axes
from quantcfg.export.deployed import deployed
from quantcfg.export.freeze import FrozenModel, freeze
from quantcfg.export.integers import Integers
from quantcfg.export.ops import SINGLE
from quantcfg.export.program import export_program
from quantcfg.export.report import QuantizerDifference
from quantcfg.export.session import FileModel, Runner, input_names, latencies_s, open_session, runner
from quantcfg.render.text import percent
from quantcfg.stages.progress import Silence
from tests.models.operators import declare_operators

Inputs = dict[str, Tensor]
_SAMPLES = 8
_CLASSES = 10
CONFIG = """\
version: 1
qconfig: {{global: {{activation_observer: min_max, weight_observer: min_max}}}}
export: {{target: {target}, unsupported: adjust}}
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One model: counts, agreement with the fake-quant model, and ratios float over quantized.

    ``runtime`` is the share of equal integers in ONNX Runtime, op by op, with and without its optimisations.
    """

    name: str
    ops: int
    pairs: int
    equal: float
    equal_exact: float
    flowing: float
    flowing_exact: float
    own_exact: int
    in_float: int
    runtime: dict[str, float]
    top1: dict[str, float]
    size: float
    latency: float


def _image(name: str, size: int) -> Callable[[], tuple[nn.Module, Inputs]]:
    def make() -> tuple[nn.Module, Inputs]:
        from torchvision import models

        model = models.get_model(name, weights=None, num_classes=_CLASSES).train()
        with torch.no_grad():
            for _ in range(2):
                model(torch.randn(_SAMPLES, 3, size, size))
        return model.eval(), {"x": torch.randn(_SAMPLES, 3, size, size)}

    return make


def _transformer(name: str) -> tuple[nn.Module, Inputs]:
    import transformers as t

    ids = torch.randint(5, 500, (_SAMPLES, 64))
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if name == "segformer":
        config = t.SegformerConfig(num_labels=_CLASSES)
        return t.SegformerForSemanticSegmentation(config).eval(), {"pixel_values": torch.randn(2, 3, 64, 64)}
    sizes = {"vocab_size": 500, "num_hidden_layers": 4, "num_attention_heads": 4, "hidden_size": 256}
    if name == "bert":
        config = t.BertConfig(intermediate_size=1024, num_labels=_CLASSES, **sizes)
        return t.BertForSequenceClassification(config).eval(), text
    config = t.GPT2Config(vocab_size=500, n_embd=256, n_layer=4, n_head=4, use_cache=False)
    return t.GPT2LMHeadModel(config).eval(), {"input_ids": ids}


MODELS: dict[str, Callable[[], tuple[nn.Module, Inputs]]] = {
    "resnet18": _image("resnet18", 64),
    "mobilenet_v3_small": _image("mobilenet_v3_small", 64),
    "efficientnet_b0": _image("efficientnet_b0", 64),
    "vit_b_16": _image("vit_b_16", 224),
    "swin_t": _image("swin_t", 64),
    "segformer": lambda: _transformer("segformer"),
    "bert": lambda: _transformer("bert"),
    "gpt2": lambda: _transformer("gpt2"),
}


def _scores(outputs: Any) -> Tensor:
    scores: Tensor = outputs if isinstance(outputs, Tensor) else outputs["logits"]
    return scores.movedim(1, -1) if scores.dim() == 4 else scores


def _same_first(found: Any, expected: Any) -> float:
    return float((_scores(found).argmax(-1) == _scores(expected).argmax(-1)).float().mean())


def _file(model: nn.Module, inputs: Inputs, path: Path) -> FileModel:
    call = Call((), inputs)
    program = export_program(model, call, varying_axes([call]), Silence())
    onnx_file.write(onnx_file.to_onnx(program, {}), path)
    names = input_names(onnx.load(path, load_external_data=False))
    return FileModel(program, names, runner(open_session(path, optimised=True)))


def _in_runtime(file: FileModel, frozen: FrozenModel, plan: qc.Plan, path: Path) -> dict[str, float]:
    """The share of integers that ONNX Runtime makes as the model does, each op given the model's own."""
    integers = Integers(onnx.load(path, load_external_data=False), frozen, plan, file.program.call)
    apart = path.with_name("apart.onnx")
    integers.write_cut(apart, apart=True)
    feeds = file.feeds(file.program.call)
    return {
        way: _equal_share(integers.compare(open_session(apart, optimised=way == "optimised"), feeds))
        for way in ("unoptimised", "optimised")
    }


def _equal_share(found: Sequence[QuantizerDifference]) -> float:
    return 1 - sum(item.num_different for item in found) / sum(item.num_values for item in found)


@torch.no_grad()
def measure(name: str, config: qc.Config, folder: Path) -> Row:
    """Prepare, calibrate, convert, export and run one model."""
    torch.manual_seed(0)
    net, inputs = MODELS[name]()

    def forward(model: nn.Module) -> Any:
        return model(**inputs)

    model = qc.prepare(net, config, forward=forward)
    with qc.calibrating(model):
        forward(model)
    qc.set_fake_quantize(model, qc.FakeQuantState.VALIDATION)
    frozen = freeze(deployed(model.eval(), in_float32=True), forward, SINGLE)
    file = _file(frozen.model, inputs, folder / f"{name}.onnx")
    float_file = _file(copy.deepcopy(net), inputs, folder / f"{name}-float.onnx")
    float_s, int_s = latencies_s([_timed(float_file, inputs), _timed(file, inputs)])
    rounded = qc.compare_integers(model, [forward])
    exact = qc.compare_integers(model, [forward], bias="exact")
    expected = forward(net)
    others = {"fake-quant": model, "ORT": file, "integer": qc.convert(model)}
    return Row(
        name=name,
        ops=qc.plan_of(model).coverage.quantized_ops,
        pairs=len(frozen.quantizers),
        equal=rounded.equal_share,
        equal_exact=exact.equal_share,
        flowing=rounded.flowing_share,
        flowing_exact=exact.flowing_share,
        own_exact=sum(op.own for op in exact.ops),
        in_float=len(exact.in_float),
        runtime=_in_runtime(file, frozen, qc.plan_of(model), folder / f"{name}.onnx"),
        top1={title: _same_first(forward(other), expected) for title, other in others.items()},
        size=_size(folder / f"{name}-float.onnx") / _size(folder / f"{name}.onnx"),
        latency=float_s / int_s,
    )


def _timed(file: FileModel, inputs: Inputs) -> tuple[Runner, Any]:
    return file.run, file.feeds(Call((), inputs))


def _size(path: Path) -> int:
    return sum(part.stat().st_size for part in path.parent.glob(f"{path.stem}.*"))


def _lines(rows: Iterator[Row]) -> Iterator[str]:
    yield (
        "| model | quantized ops | quantizers | ORT by op | optimised | integer by op | in flow | own "
        "| in float | top-1 of the three | size | latency |"
    )
    yield "|---" * 12 + "|"
    for row in rows:
        first = ", ".join(f"{row.top1[title]:.3f}" for title in ("fake-quant", "ORT", "integer"))
        yield (
            f"| {row.name} | {row.ops} | {row.pairs} "
            f"| {percent(row.runtime['unoptimised'], 4)} | {percent(row.runtime['optimised'], 4)} "
            f"| {percent(row.equal, 4)} ({percent(row.equal_exact, 4)}) "
            f"| {percent(row.flowing, 2)} ({percent(row.flowing_exact, 2)}) "
            f"| {row.own_exact} | {row.in_float} | {first} | {row.size:.2f} | {row.latency:.2f} |"
        )


def main() -> None:
    """Print the table; shares in brackets are with unrounded biases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(MODELS)}; all of them by default")
    parser.add_argument("--target", default="generic", help="what takes the file (default: %(default)s)")
    options = parser.parse_args()
    names = options.names or list(MODELS)
    declare_operators()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder, "config.yaml")
        written.write_text(CONFIG.format(target=options.target))
        config = qc.load_config(written)
        for line in _lines(measure(name, config, Path(folder)) for name in names):
            print(line, flush=True)


if __name__ == "__main__":
    main()
