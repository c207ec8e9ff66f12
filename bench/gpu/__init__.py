"""What the GPU kernels compile to, and the floors of what they compute. No GPU is needed, and none
of it is a measurement."""
