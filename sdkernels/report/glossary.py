"""The terms of the page, explained for a reader who has not read the papers."""

from __future__ import annotations

from sdkernels.report.text import MINUS, escape

# fmt: off
GLOSSARY = (
    ("Student, teacher",
     "The model that learns, and the model that judges its tokens. In self-distillation both are "
     "the same model; the teacher has only read more."),
    ("Condition",
     "One way to teach: a loss recipe together with a context. Everything else is meant to stay "
     "equal."),
    ("Context",
     "What the teacher reads besides the question: a reference solution, a critique, a verifier's "
     "verdict ..."),
    ("Rollout",
     "One answer that the student wrote. Training is on-policy: the student learns on its own "
     "text, not on the teacher's."),
    ("Log-probability, nat",
     "How likely a model finds a token, as a natural logarithm: 0 is certain, "
     f"{MINUS}0.69 nats is 50 %, {MINUS}4.6 nats is 1 %."),
    ("Gap",
     "The teacher's minus the student's log-probability of a token that the student wrote. "
     "Positive (red): the teacher, knowing more, would keep it. Negative (blue): it would rather "
     "see something else there."),
    ("Entropy",
     "How spread out a model's next-token prediction is, in nats. 0: only one token is possible. "
     "High: many are; this is where the text could fork."),
    ("Direction",
     "What a gated recipe such as DASD does with a token: +1 pulls the student towards the "
     f"teacher, {MINUS}1 pushes it away, in between is weaker. Low-entropy tokens are pulled, "
     "high-entropy ones pushed."),
    ("KL, JSD",
     "How far the next-token predictions of teacher T and student S are apart, in nats; 0: not at "
     "all. KL(T||S) weighs every token by the teacher's probability, KL(S||T) by the student's; "
     "JSD mixes the two and never exceeds 0.69."),
    ("Advantage",
     "By how much the verifier rewarded an answer above the mean of all answers to the same "
     "prompt."),
    ("Epistemic markers",
     "Words such as wait, perhaps, maybe, check, with which a model voices doubt. A teacher that "
     "knows the answer tends to train them away; whether accuracy suffers is what these studies "
     "ask."),
    ("Accuracy before, after",
     "Share of verified correct answers in an evaluation before and after training. The range "
     "under it is a 95 % interval (bootstrap over problems; Wilson's score interval where all "
     "problems score the same, which leaves nothing to resample): were the evaluation repeated "
     "on other prompts, it would mostly fall there."),
    ("Loss",
     "The quantity that training lowers. Recipes define it differently, so the losses of two "
     "conditions do not compare."),
    ("GRPO",
     "The baseline without a teacher: each answer is rewarded or not, and compared with the other "
     "answers to the same prompt."),
    ("Speed, peak memory",
     "Tokens per second over whole training steps, rollouts included, and the most memory that "
     "was in use."),
)
# fmt: on


def section() -> str:
    """Return the glossary as an HTML description list."""
    rows = (f"<div><dt>{term}</dt><dd>{escape(said)}</dd></div>" for term, said in GLOSSARY)
    return f"<dl>{''.join(rows)}</dl>"
