"""A model file that signals its own process, at a call of a function that the test chooses."""

STOPPABLE = """
import os, random
import numpy as np
import torch.nn.functional as F
calls = {"loss": 0, "calib": 0}

def stop_at(name):
    calls[name] += 1
    where, call, number = os.environ.get("STOP", "::").split(":")
    if where == name and calls[name] == int(call):
        os.kill(os.getpid(), int(number))

def loss(outputs, batch):
    stop_at("loss")
    return F.cross_entropy(outputs, batch[1]) * (1 + random.random() + np.random.rand())

def calib_data():
    for x, y in DataLoader(dataset(1), batch_size=8, shuffle=True):
        stop_at("calib")
        yield x + torch.rand(1) / 9, y
"""
QAT, CALIB = ("qat", "model.py", "config.yaml"), ("calib", "model.py", "config.yaml")


def stopped(project, monkeypatch, stop, *arguments):
    """Run to the stop; the outcome."""
    monkeypatch.setenv("STOP", stop)
    done = project.run(*arguments, "-q")
    monkeypatch.delenv("STOP")
    return done
