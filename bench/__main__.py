"""`python -m bench`: every benchmark of this folder, results under `bench/results/`."""

import datetime
import sys
from pathlib import Path

from bench.divergence import main

if __name__ == "__main__":
    today = datetime.date.today().isoformat()
    default_out = ["--out", str(Path(__file__).parent / "results" / f"cpu-{today}.json")]
    main(sys.argv[1:] if "--out" in sys.argv else default_out + sys.argv[1:])
