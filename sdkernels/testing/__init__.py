"""Tools to test code on top of sdkernels, and sdkernels itself.

`assert_close_to_reference` and `assert_exact` judge a result, `mutants` are the wrong results
that a judge must reject, `input_families` the inputs on which wrong code shows.
"""

from sdkernels.testing.compare import Comparison, assert_close_to_reference, assert_exact
from sdkernels.testing.inputs import Inputs, input_families
from sdkernels.testing.mutants import mutants

__all__ = [
    "Comparison",
    "Inputs",
    "assert_close_to_reference",
    "assert_exact",
    "input_families",
    "mutants",
]
