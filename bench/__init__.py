"""clipfast_bench: what clipfast costs beside what people would use instead, on this machine."""
