"""Trainers that know nothing of quantcfg train a prepared model as they train any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from quantcfg.preparation.prepare import prepare
from quantcfg.preparation.state import (
    FakeQuantState,
    calibrating,
    fake_quants,
    plan_of,
    set_fake_quantize,
    state_of,
)
from quantcfg.qconfig import get_default_qconfig
from tests.prepare.models import ResNet

# What libraries say of each other is not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")

LSQ = {"": get_default_qconfig(activation_fake_quant="lsq", weight_fake_quant="lsq")}
# Random weights change much from step to step: ranges that follow at once keep up with them.
INT8 = {"": get_default_qconfig(activation_qkwargs={"averaging_constant": 1.0})}


class Sentences(Dataset[dict[str, Tensor]]):
    """Padded token ids; the label says whether they are small ones."""

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        small = index % 2
        ids = torch.randint(5, 45, (12,), generator=torch.Generator().manual_seed(index)) + 45 * (1 - small)
        mask = (torch.arange(12) < 4 + index % 9).long()
        return {"input_ids": ids * mask, "attention_mask": mask, "labels": torch.tensor(small)}


class Images(Dataset[tuple[Tensor, Tensor]]):
    """The label is the brightest channel."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(index))
        image[index % 3] += 2
        return image, torch.tensor(index % 3)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def classifier(transformers: Any) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=100
    )
    model = transformers.BertForSequenceClassification(config).eval()
    batch = {name: tensor[None] for name, tensor in Sentences()[0].items()}
    return prepare(model, INT8, example_inputs=batch, stage="qat")


def trainer_of(transformers: Any, model: nn.Module, folder: Path) -> Any:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=24, per_device_train_batch_size=8, learning_rate=5e-3, use_cpu=True,
        report_to="none", disable_tqdm=True, logging_steps=1, save_strategy="no", seed=0,
    )  # fmt: skip
    return transformers.Trainer(
        model=model, args=arguments, train_dataset=Sentences(), eval_dataset=Sentences()
    )


def test_the_trainer_of_transformers_trains_evaluates_and_saves(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers: make models")
    pytest.importorskip("accelerate", reason="the Trainer needs accelerate: make models")
    model = classifier(transformers)
    before = snapshot(model)
    trainer = trainer_of(transformers, model, tmp_path)

    trainer.train()

    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 24
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    assert [name for name, module in fake_quants(model).items() if not module.observed] == []
    assert not torch.equal(model.bert.pooler.dense.weight, before["bert.pooler.dense.weight"])
    trained = snapshot(model)
    assert trainer.evaluate()["eval_loss"] < losses[0]
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, trained[name], rtol=0, atol=0, equal_nan=True)
    trainer.save_model()
    saved = transformers.modeling_utils.load_state_dict(str(tmp_path / "model.safetensors"))
    assert saved.keys() == trained.keys()


def lightning_module(lightning: Any, net: nn.Module) -> Any:
    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net
            self.losses: list[float] = []

        def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            loss = F.cross_entropy(self.net(batch[0]), batch[1])
            self.losses.append(loss.item())
            return loss

        def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
            self.log("accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.net.parameters(), lr=1e-2)

    return Classifier()


@pytest.mark.parametrize("rules", [INT8, LSQ], ids=["fake_quant", "lsq"])
def test_a_lightning_module_trains_a_prepared_model_and_resumes_its_checkpoint(
    tmp_path: Path, rules: dict[str, Any]
) -> None:
    lightning = pytest.importorskip("lightning.pytorch", reason="needs lightning: make models")
    torch.manual_seed(0)
    net = prepare(ResNet(), rules, example_inputs=(torch.randn(4, 3, 8, 8),), stage="qat")
    module = lightning_module(lightning, net)
    batches = DataLoader(Images(), batch_size=8)
    options: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False,
                               "enable_model_summary": False, "default_root_dir": tmp_path}  # fmt: skip

    trainer = lightning.Trainer(max_epochs=8, **options)
    trainer.fit(module, batches, batches)

    assert sum(module.losses[-3:]) < 0.7 * sum(module.losses[:3])
    assert [name for name, quantizer in fake_quants(net).items() if not quantizer.observed] == []
    assert state_of(net) is FakeQuantState.QAT
    assert plan_of(net).coverage.macs_share == 1.0
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = prepare(ResNet(), rules, example_inputs=(torch.randn(4, 3, 8, 8),), stage="qat")
    other = lightning_module(lightning, again)
    lightning.Trainer(max_epochs=9, **options).fit(other, batches, ckpt_path=str(tmp_path / "last.ckpt"))
    assert other.losses[0] < module.losses[0]


def test_a_prepared_lightning_module_is_one_still() -> None:
    lightning = pytest.importorskip("lightning.pytorch", reason="needs lightning: make models")
    module = lightning_module(lightning, ResNet()).eval()
    image = torch.randn(4, 3, 8, 8)

    prepared = prepare(module, INT8, forward=lambda m: m.net(image), stage="calib")
    with calibrating(prepared):
        prepared.net(image)
    set_fake_quantize(prepared, FakeQuantState.VALIDATION)

    assert isinstance(prepared, lightning.LightningModule)
    assert not torch.equal(prepared.net(image), module.net(image))
