"""clipfast inside other people's code: one module per library."""
