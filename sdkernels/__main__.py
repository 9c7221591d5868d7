"""`python -m sdkernels`: the command line, where the script `sdkernels` is not on the path."""

import sys

from sdkernels.cli import main

sys.exit(main())
