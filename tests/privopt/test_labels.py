"""Labels outside the model's classes: refused before a round, and never told."""

import numpy as np
import pytest
import torch

import dp
from privopt.federation.problem import TorchProblem


def problem(labels, scores=3):
    rows = np.ones((len(labels), 4), np.float32)
    return TorchProblem(torch.nn.Linear(4, scores), rows, np.array(labels, np.int64))


@pytest.mark.parametrize("wrong", [41, 3, -1, -100])
def test_a_label_outside_the_models_classes_is_refused_at_construction(wrong):
    with pytest.raises(ValueError, match="labels from 0 to 2") as caught:
        problem([0, 1, wrong, 2])
    assert str(wrong) not in str(caught.value).replace("3 classes", "")


def test_labels_within_are_taken_and_the_global_randomness_stays():
    state = torch.get_rng_state()
    model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(4, 3))
    after = torch.get_rng_state()
    TorchProblem(model, np.ones((2, 4), np.float32), np.array([0, 2], np.int64))
    assert torch.equal(after, torch.get_rng_state())
    torch.set_rng_state(state)
    assert problem([]).num_samples == 0


@pytest.mark.parametrize("clipper", [dp.OpacusClipper, dp.LoopClipper])
@pytest.mark.parametrize("wrong", [41, -100])
def test_a_clipper_refuses_a_target_without_telling_it(clipper, wrong):
    clip = clipper(torch.nn.Linear(4, 3))
    with pytest.raises(ValueError, match="targets from 0 to 2") as caught:
        clip.clipped_sum(np.ones((3, 4), np.float32), np.array([0, wrong, 1]), 1.0)
    assert str(wrong) not in str(caught.value)
    assert clip.clipped_sum(np.ones((2, 4), np.float32), np.array([0, 2]), 1.0).count == 2
