"""The learned inner learning rate driven to 0, to infinity and to no number."""

from __future__ import annotations

import torch

from iadd_fast import evaluate
from iadd_fast.evaluation_networks import TrainedNetworks
from iadd_fast.settings import DistillSettings
from iadd_fast.synthetic import SyntheticSet
from tests.trouble.small import CONVNET, blobs, one_of_each, samples


def learned(**settings: float) -> SyntheticSet:
    images, labels = samples()
    return SyntheticSet(images, labels, 3, DistillSettings.of(lr_lr=1.0, momentum=0.0, **settings))


def test_alpha_driven_to_zero_stays_a_number_above_it() -> None:
    """Halved a thousand times alpha was 0 from step 143 on, never grew again, and the result could
    not be saved; now it rests at the smallest normal number and doubles back."""
    synthetic = learned()
    still = torch.zeros_like(synthetic.images)
    for _ in range(1000):
        synthetic.step(still, torch.tensor(1e6), None)
    tiny = torch.finfo(torch.float32).tiny
    assert float(synthetic.lr) == tiny
    synthetic.step(still, torch.tensor(-1e6), None)
    assert float(synthetic.lr) == 2 * tiny


def test_one_step_changes_alpha_by_a_factor_of_two_at_most() -> None:
    """An infinite gradient is no reason for an infinite alpha."""
    synthetic = learned(lr_init=0.01)
    still = torch.zeros_like(synthetic.images)
    synthetic.step(still, torch.tensor(-torch.inf), None)
    assert float(synthetic.lr) == float(torch.tensor(0.01) * 2)


def test_a_set_with_a_vanishing_alpha_is_saved_and_evaluated() -> None:
    """Its networks are the initialisations (a rate of 0 or NaN would not be): finite, untrained."""
    data = blobs()
    lr = float(torch.finfo(torch.float32).tiny)
    networks: list[TrainedNetworks] = []
    evaluation = evaluate(
        one_of_each(data, lr=lr),
        data,
        CONVNET,
        networks=1,
        epochs=3,
        baselines=(),
        full=False,
        progress=False,
        on_trained=networks.append,
    )
    assert evaluation.rows[0].diverged == 0
    assert networks[0].initial is not None
    # Weight decay is times the rate too: nothing moves by more than a rounding.
    torch.testing.assert_close(networks[0].thetas, networks[0].initial, rtol=1e-6, atol=1e-30)
