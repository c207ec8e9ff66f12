import sys

from clipfast.cli import main

sys.exit(main(["train", *sys.argv[1:]]))
