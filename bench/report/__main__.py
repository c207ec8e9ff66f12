import sys

from clipfast_bench.report.command import main

sys.exit(main())
