"""Class names and sentences of the common sets: facts, in a file for each set."""
