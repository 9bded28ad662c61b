"""The public door: every name that users may import from quantcfg, and the module that defines it.

The names are loaded when they are asked for: the config stack and the command line do not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantcfg.config.load import (
        Config as Config,
        load_config as load_config,
    )
    from quantcfg.errors import (
        ConfigError as ConfigError,
        Diagnostic as Diagnostic,
        GuardError as GuardError,
        Interrupted as Interrupted,
        NumericError as NumericError,
        Place as Place,
        PrepareError as PrepareError,
        QuantcfgDeprecationWarning as QuantcfgDeprecationWarning,
        QuantcfgError as QuantcfgError,
        QuantcfgWarning as QuantcfgWarning,
        RunError as RunError,
        UsageError as UsageError,
        UserCodeError as UserCodeError,
    )
    from quantcfg.integer.compare import (
        IntegerReport as IntegerReport,
        compare_integers as compare_integers,
    )
    from quantcfg.integer.convert import convert as convert
    from quantcfg.numeric.dtypes import (
        QuantDType as QuantDType,
        qint2 as qint2,
        qint3 as qint3,
        qint4 as qint4,
        qint5 as qint5,
        qint6 as qint6,
        qint7 as qint7,
        qint8 as qint8,
        qint9 as qint9,
        qint10 as qint10,
        qint11 as qint11,
        qint12 as qint12,
        qint13 as qint13,
        qint14 as qint14,
        qint15 as qint15,
        qint16 as qint16,
        quint2 as quint2,
        quint3 as quint3,
        quint4 as quint4,
        quint5 as quint5,
        quint6 as quint6,
        quint7 as quint7,
        quint8 as quint8,
        quint9 as quint9,
        quint10 as quint10,
        quint11 as quint11,
        quint12 as quint12,
        quint13 as quint13,
        quint14 as quint14,
        quint15 as quint15,
        quint16 as quint16,
    )
    from quantcfg.preparation.freezing import (
        freeze_batch_norm as freeze_batch_norm,
        freeze_observers as freeze_observers,
    )
    from quantcfg.preparation.plan import (
        OpRow as OpRow,
        Plan as Plan,
    )
    from quantcfg.preparation.prepare import (
        prepare as prepare,
        prepare_qat_fx as prepare_qat_fx,
    )
    from quantcfg.preparation.restage import change_stage as change_stage
    from quantcfg.preparation.setters import (
        ModuleNameQconfigSetter as ModuleNameQconfigSetter,
        TemplateQconfigSetter as TemplateQconfigSetter,
        calibration_8bit_weight_16bit_act_qconfig_setter as calibration_8bit_weight_16bit_act_qconfig_setter,
        default_calibration_qconfig_setter as default_calibration_qconfig_setter,
        default_qat_fixed_act_qconfig_setter as default_qat_fixed_act_qconfig_setter,
        default_qat_qconfig_setter as default_qat_qconfig_setter,
        get_sensitive_op_qconfig_setter as get_sensitive_op_qconfig_setter,
        qat_8bit_weight_16bit_act_qconfig_setter as qat_8bit_weight_16bit_act_qconfig_setter,
        qat_8bit_weight_16bit_fixed_act_qconfig_setter as qat_8bit_weight_16bit_fixed_act_qconfig_setter,
    )
    from quantcfg.preparation.state import (
        FakeQuantState as FakeQuantState,
        LoadReport as LoadReport,
        calibrating as calibrating,
        fake_quants as fake_quants,
        finish_calibration as finish_calibration,
        load_observer_params as load_observer_params,
        plan_of as plan_of,
        set_fake_quantize as set_fake_quantize,
        state_of as state_of,
    )
    from quantcfg.preparation.stubs import (
        DeQuantStub as DeQuantStub,
        QuantStub as QuantStub,
    )
    from quantcfg.qconfig import (
        QConfig as QConfig,
        default_calib_8bit_fake_quant_qconfig as default_calib_8bit_fake_quant_qconfig,
        default_calib_8bit_weight_16bit_act_fake_quant_qconfig as default_calib_8bit_weight_16bit_act_fake_quant_qconfig,
        default_calib_8bit_weight_32bit_out_fake_quant_qconfig as default_calib_8bit_weight_32bit_out_fake_quant_qconfig,
        default_calib_qconfig as default_calib_qconfig,
        default_qat_4bit_qconfig as default_qat_4bit_qconfig,
        default_qat_8bit_fake_quant_qconfig as default_qat_8bit_fake_quant_qconfig,
        default_qat_8bit_fixed_act_fake_quant_qconfig as default_qat_8bit_fixed_act_fake_quant_qconfig,
        default_qat_8bit_lsq_quant_qconfig as default_qat_8bit_lsq_quant_qconfig,
        default_qat_8bit_pact_quant_qconfig as default_qat_8bit_pact_quant_qconfig,
        default_qat_8bit_qconfig as default_qat_8bit_qconfig,
        default_qat_8bit_weight_16bit_act_fake_quant_qconfig as default_qat_8bit_weight_16bit_act_fake_quant_qconfig,
        default_qat_8bit_weight_16bit_fixed_act_fake_quant_qconfig as default_qat_8bit_weight_16bit_fixed_act_fake_quant_qconfig,
        default_qat_8bit_weight_32bit_out_fake_quant_qconfig as default_qat_8bit_weight_32bit_out_fake_quant_qconfig,
        default_qat_16bit_lsq_quant_qconfig as default_qat_16bit_lsq_quant_qconfig,
        default_qat_16bit_pact_quant_qconfig as default_qat_16bit_pact_quant_qconfig,
        default_qat_out_4bit_qconfig as default_qat_out_4bit_qconfig,
        default_qat_out_8bit_qconfig as default_qat_out_8bit_qconfig,
        get_default_qconfig as get_default_qconfig,
        per_channel_qat_8bit_qconfig as per_channel_qat_8bit_qconfig,
        preset_qconfig as preset_qconfig,
    )

__version__ = "0.1.0"

_NAMES = {
    "quantcfg.config.load": "Config load_config",
    "quantcfg.errors": """
        ConfigError Diagnostic GuardError Interrupted NumericError Place PrepareError
        QuantcfgDeprecationWarning QuantcfgError QuantcfgWarning RunError UsageError UserCodeError
    """,
    "quantcfg.integer.compare": "IntegerReport compare_integers",
    "quantcfg.integer.convert": "convert",
    "quantcfg.numeric.dtypes": """
        QuantDType qint2 qint3 qint4 qint5 qint6 qint7 qint8 qint9 qint10 qint11 qint12 qint13
        qint14 qint15 qint16 quint2 quint3 quint4 quint5 quint6 quint7 quint8 quint9 quint10 quint11
        quint12 quint13 quint14 quint15 quint16
    """,
    "quantcfg.preparation.freezing": "freeze_batch_norm freeze_observers",
    "quantcfg.preparation.plan": "OpRow Plan",
    "quantcfg.preparation.prepare": "prepare prepare_qat_fx",
    "quantcfg.preparation.restage": "change_stage",
    "quantcfg.preparation.state": """
        FakeQuantState LoadReport calibrating fake_quants finish_calibration load_observer_params
        plan_of set_fake_quantize state_of
    """,
    "quantcfg.preparation.setters": """
        ModuleNameQconfigSetter TemplateQconfigSetter get_sensitive_op_qconfig_setter
        calibration_8bit_weight_16bit_act_qconfig_setter default_calibration_qconfig_setter
        default_qat_fixed_act_qconfig_setter default_qat_qconfig_setter
        qat_8bit_weight_16bit_act_qconfig_setter qat_8bit_weight_16bit_fixed_act_qconfig_setter
    """,
    "quantcfg.preparation.stubs": "DeQuantStub QuantStub",
    "quantcfg.qconfig": """
        QConfig get_default_qconfig default_calib_8bit_fake_quant_qconfig
        default_qat_8bit_fake_quant_qconfig default_qat_8bit_fixed_act_fake_quant_qconfig
        default_calib_8bit_weight_16bit_act_fake_quant_qconfig
        default_qat_8bit_weight_16bit_act_fake_quant_qconfig
        default_qat_8bit_weight_16bit_fixed_act_fake_quant_qconfig
        default_qat_8bit_weight_32bit_out_fake_quant_qconfig
        default_calib_8bit_weight_32bit_out_fake_quant_qconfig default_qat_8bit_pact_quant_qconfig
        default_qat_16bit_pact_quant_qconfig default_qat_8bit_lsq_quant_qconfig
        default_qat_16bit_lsq_quant_qconfig default_qat_8bit_qconfig default_qat_4bit_qconfig
        default_qat_out_8bit_qconfig default_qat_out_4bit_qconfig per_channel_qat_8bit_qconfig
        default_calib_qconfig preset_qconfig
    """,
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = sorted(_MODULE_OF)


def _load(name: str) -> Any:
    # Deprecated presets are not listed, so that a star import does not warn; they resolve all the same.
    module = "quantcfg.qconfig" if name.endswith("_qconfig") else _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'quantcfg' has no attribute '{name}'")
    return getattr(import_module(module), name)


if not TYPE_CHECKING:  # a type checker that saw it would take every misspelt name for a public one
    __getattr__ = _load


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
