"""What an evaluation costs: features, classifiers, probes, retrieval."""
