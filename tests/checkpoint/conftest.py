"""Tensors and states that make a wrong checkpoint show."""

import os

import pytest
import torch


@pytest.fixture
def fast_disk(monkeypatch):
    """Does not wait for the disk: for tests in which the machine keeps its power."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def contents():
    """step → (tensors, state), different for every step."""

    def make(step: int):
        tensors = {
            "policy": {"weight": torch.full((4, 3), float(step)), "bias": torch.arange(3) + step},
            "optimizer": {"weight/step": torch.tensor(float(step))},
        }
        return tensors, {"cursor": step, "rng": [1, 2, 2**63, -0.5, None, "定"]}

    return make
