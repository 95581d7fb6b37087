"""Gradients are never taken through cuDNN's attention, whose backward returns NaN for some lengths on Hopper."""

import pytest
import torch

from rankspace import RankspaceError
from rankspace.models import load_model
from rankspace.projection import Layout, project
from services.trainer.policy import _device


@pytest.fixture(autouse=True)
def as_torch_has_it():
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    yield
    torch.backends.cuda.enable_cudnn_sdp(before)


def test_a_trainer_keeps_attention_off_cudnn():
    _device("cpu")
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()


def test_a_model_for_extracting_a_direction_keeps_attention_off_cudnn():
    load_model("tasks/organism/model")
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_a_gradient_that_is_no_number_says_in_how_many_modules_and_where_it_began():
    layout = Layout.of([("a", 2), ("b", 2), ("c", 2)])
    gradient = torch.tensor([1.0, 0.0, torch.nan, 0.0, torch.inf, 0.0])
    with pytest.raises(RankspaceError, match=r"of 2 of 3 modules holds NaN or Inf, the last of them c:.*avoid_cudnn"):
        project(gradient, torch.tensor([1.0, 0.0] * 3), layout, "one_sided")
