"""The kernels' operations, forward and backward."""
