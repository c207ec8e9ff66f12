"""What the cases are given: photographs, captions, shards, features, a tiny model."""
