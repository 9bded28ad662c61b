import pytest


@pytest.fixture
def on_a_device(monkeypatch):
    """Compute as on a device, whose values Python has to wait for, and not with the floats of the host."""
    for module in ("observers.min_max", "qparams", "ops"):
        monkeypatch.setattr(f"quantcfg.numeric.{module}.is_on_host", lambda *_: False)
