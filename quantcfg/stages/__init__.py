"""The stages: calib, qat, evaluate."""
