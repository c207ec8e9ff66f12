"""Stored samples to training batches: decoding, tokenizing, the loader; `clipfast bench feed`."""
