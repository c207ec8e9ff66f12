import sys

from clipfast.cli import main

sys.exit(main())
