"""Gradients are never taken through cuDNN's attention, whose backward others have seen return NaN."""

import pytest
import torch

from rankspace.models import load_model
from services.trainer.distributed import take_device


@pytest.fixture(autouse=True)
def as_torch_has_it():
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    yield
    torch.backends.cuda.enable_cudnn_sdp(before)


def test_a_trainer_keeps_attention_off_cudnn():
    take_device("cpu")
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()


def test_a_model_for_extracting_a_direction_keeps_attention_off_cudnn():
    load_model("tasks/organism/model")
    assert not torch.backends.cuda.cudnn_sdp_enabled()
