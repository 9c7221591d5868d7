"""What single adapters owe the libraries that they call."""

import pytest

from sdkernels.bench import peers
from sdkernels.bench.check import bounds_of
from sdkernels.bench.problem import Problem, float64_answer
from sdkernels.bench.runner import checked_row


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("tokens", "checked"), [(56, 16), (56, 20), (24, 17), (400, 20)])
def test_liger_grpo_is_right_on_the_first_tokens_of_uneven_sequences(setting, tokens, checked):
    peer = peers.load()["liger-grpo"]
    whole = setting("grpo", tokens=tokens)
    if peer.why_not(whole, None) is not None:
        pytest.skip("Liger is not installed")
    problem = Problem.make(whole).first(checked)
    answer = float64_answer(problem)
    row = checked_row(peer, problem, answer, bounds_of(problem, answer), whole)
    assert row["status"] == "ok", row
