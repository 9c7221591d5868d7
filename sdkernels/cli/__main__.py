"""`python -m sdkernels.cli`."""

import sys

from sdkernels.cli import main

sys.exit(main())
