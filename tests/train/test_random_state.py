"""What was drawn once is drawn again."""

import torch

from clipfast.train.random_state import RandomState


def test_draws_in_the_block_repeat_and_those_after_it_go_on():
    torch.manual_seed(3)
    state = RandomState.now(torch.device("cpu"))
    first, second = torch.rand(2), torch.rand(2)
    third_expected = torch.get_rng_state()
    with state.restored():
        assert torch.equal(torch.rand(2), first)
        assert torch.equal(torch.rand(2), second)
        torch.rand(7)
    assert torch.equal(torch.get_rng_state(), third_expected)
