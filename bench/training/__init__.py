"""The training step and the whole trainer; `clipfast bench train`."""
