"""Small runs and engines of other folders' tests are made here with more ranks."""

import sys
from pathlib import Path

for helpers in ("train/checkpoints", "train/engines"):
    sys.path.insert(0, str(Path(__file__).parent.parent / helpers))
