"""`explain` by name alone: codes, presets, kinds and fields."""

from __future__ import annotations

import pytest

from quantcfg.config.catalogue import CatalogueEntry
from quantcfg.config.codes import CODES
from quantcfg.config.explain import config_fields, explain_topic
from quantcfg.config.parameters import PARAMETERS
from quantcfg.config.presets import PRESETS
from quantcfg.errors import UsageError


@pytest.mark.parametrize("code", CODES)
def test_a_code_has_its_page(code):
    assert explain_topic(code.lower()).startswith(f"## {code}: ")


@pytest.mark.parametrize("name", [*PRESETS, *PARAMETERS])
def test_a_preset_or_kind_has_its_entry(name):
    entry = explain_topic(name)
    assert isinstance(entry, CatalogueEntry)
    assert entry.name == name
    assert entry.doc


def test_a_field_has_its_documentation():
    assert explain_topic("qat.bn").doc == (
        "Batch norms: folded into the convolution, kept and trained, or kept with frozen statistics."
    )
    assert explain_topic("qat.optimizer.lr").doc == "Learning rate."
    assert {row.name for row in explain_topic("guards").rows} >= {"quantized_macs", "metric_drop"}


def test_a_field_has_its_default_and_the_words_that_it_may_be():
    assert rows_of("qat.bn") == [("default", "fold"), ("one of", "fold, keep, freeze")]
    assert rows_of("qat.optimizer.lr") == [("default", "none, it is required")]
    assert rows_of("calib")[-2:] == [("compare_per", "op"), ("qconfig", "")]
    assert rows_of("qconfig")[0] == ("global", "null")


def test_a_section_of_several_kinds_lists_them():
    assert rows_of("qat.scheduler")[:2] == [("cosine", "min_lr"), ("linear", "start_factor, end_factor")]
    assert rows_of("qat.optimizer.weight_decay")[2:] == [("AdamW", "0.01"), ("RMSprop", "0.0")]
    assert explain_topic("qat.optimizer.name").doc == "Which of these it is."


def rows_of(topic):
    return [(row.name, row.value) for row in explain_topic(topic).rows]


def test_every_path_is_explained_once():
    paths = [path for path, _ in config_fields()]
    assert len(paths) == len(set(paths))


def test_every_field_is_documented():
    assert [path for path, entry in config_fields() if not entry.doc] == []


def test_a_misspelt_name_is_a_usage_error_with_a_guess():
    with pytest.raises(UsageError) as caught:
        explain_topic("qat.optimiser.lr")
    assert (caught.value.message, caught.value.hint) == (
        "nothing is called 'qat.optimiser.lr'",
        "did you mean qat.optimizer.lr?",
    )
