"""The numbers of a training step that a report draws: title, unit, and what they tell."""

from __future__ import annotations

from dataclasses import dataclass

from sdkernels.train.token_kinds import KINDS


@dataclass(frozen=True)
class Metric:
    """One learning curve: a key of `metrics.jsonl` with what a reader needs to understand it."""

    key: str
    title: str
    unit: str
    explain: str
    scale: float = 1.0
    more: bool = False


METRICS = (
    Metric(
        "loss",
        "Loss",
        "",
        "What the optimizer lowers. Each recipe has its own loss: compare the trend of a line, "
        "not the height of two.",
    ),
    Metric(
        "gap",
        "Gap, teacher minus student",
        "nats per token",
        "Above 0 the teacher finds the student's tokens likelier than the student does.",
    ),
    Metric(
        "accuracy",
        "Training accuracy",
        "%",
        "Share of rollouts whose answer was verified correct.",
        100.0,
    ),
    Metric(
        "entropy",
        "Student entropy",
        "nats per token",
        "How undecided the student is about the next token. A fall to 0 is a collapse.",
    ),
    Metric(
        "teacher_entropy",
        "Teacher entropy",
        "nats per token",
        "The same for the teacher, on the student's text. Same axis as the student's.",
    ),
    Metric(
        "completion_length", "Response length", "tokens", "Mean length of the rollouts of a step."
    ),
    Metric(
        "markers_per_1k",
        "Epistemic markers",
        "per 1,000 tokens",
        "Words that voice doubt or checking: wait, hmm, perhaps, maybe, check ...",
    ),
    Metric(
        "push_share",
        "Pushed tokens",
        "% of tokens",
        "Share of tokens that the gate pushes away from the teacher instead of towards it.",
        100.0,
    ),
    Metric(
        "reward",
        "Reward",
        "mean per rollout",
        "What the verifier paid, averaged over the step's rollouts.",
    ),
    Metric(
        "gap_abs",
        "Size of the gap",
        "nats per token",
        "Mean of the gap without its sign: how strongly teacher and student disagree.",
        more=True,
    ),
    Metric(
        "kl_teacher_student",
        "KL(teacher, student)",
        "nats per token",
        "How far the two next-token distributions are apart, over the whole vocabulary.",
        more=True,
    ),
    Metric(
        "gap_negative_share",
        "Negative gaps",
        "% of tokens",
        "Share of the student's tokens that the teacher finds less likely than the student does.",
        100.0,
        more=True,
    ),
    Metric(
        "entropy_top20",
        "Student entropy, top fifth",
        "nats per token",
        "Mean over the 20 % most undecided tokens of each response, where the text forks.",
        more=True,
    ),
    Metric(
        "teacher_entropy_top20",
        "Teacher entropy, top fifth",
        "nats per token",
        "The same for the teacher, over its own most undecided tokens.",
        more=True,
    ),
    Metric(
        "truncated_share",
        "Cut responses",
        "% of rollouts",
        "Share of rollouts that the length limit ended. A cut response seldom has an answer.",
        100.0,
        more=True,
    ),
    Metric(
        "same_output_share",
        "Repeated responses",
        "% of rollouts",
        "Share of rollouts that equal another one to the same prompt, token by token.",
        100.0,
        more=True,
    ),
    Metric(
        "distinct_answers",
        "Different answers",
        "per prompt",
        "How many different final answers the rollouts to one prompt reach.",
        more=True,
    ),
    Metric(
        "clip_low_share",
        "Clipped from below",
        "% of tokens",
        "Share of tokens whose ratio to the policy that sampled them fell below the lower clip. "
        "Only with several optimizer steps per batch of rollouts.",
        100.0,
        more=True,
    ),
    Metric(
        "clip_high_share",
        "Clipped from above",
        "% of tokens",
        "The same for the upper clip.",
        100.0,
        more=True,
    ),
    Metric(
        "is_clip_share",
        "Capped importance weights",
        "% of tokens",
        "Share of tokens whose importance weight hit its cap.",
        100.0,
        more=True,
    ),
    Metric(
        "grad_norm",
        "Gradient norm",
        "",
        "Length of the gradient before clipping. Spikes come before a run falls apart.",
        more=True,
    ),
    Metric(
        "signal_share",
        "Rollouts with a context",
        "% of rollouts",
        "Share of rollouts for which the context had something to say. In the others the teacher "
        "says nothing: recipes that only distil leave them out, recipes built on the verifier's "
        "reward (DASD, RLSD, SRPO ...) train on that alone.",
        100.0,
        more=True,
    ),
)
# Metrics that the analysis tables average over a run's steps.
_SPLITS = ("gap", "gap_negative_share", "completion_length", "markers_per_1k")
MEAN_KEYS = (
    *(f"{name}_{verdict}" for name in _SPLITS for verdict in ("correct", "wrong")),
    *(f"{name}_{kind}" for name in ("kl", "gap_abs") for kind in KINDS),
    *(f"{kind}_share" for kind in KINDS),
    *(
        f"markers{count}_{rate}"
        for count in ("", "_published")
        for rate in ("per_response", "per_1k", "per_word")
    ),
    *("gap", "gap_abs", "gap_negative_share", "kl_teacher_student", "direction", "push_share"),
    *("grad_norm", "signal_share", "truncated_share"),
)

PHASES = (
    ("rollout", "Rollouts"),
    ("context", "Contexts"),
    ("student_forward", "Student forward"),
    ("teacher_forward", "Teacher forward"),
    ("loss", "Loss"),
    ("backward", "Backward"),
    ("optimizer", "Optimizer"),
)
