import sys

from clipfast_bench.gpu.command import main

if __name__ == "__main__":  # the processes that compile import this file too
    sys.exit(main())
