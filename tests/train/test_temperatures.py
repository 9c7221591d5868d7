"""Which temperature and other settings of the engine the loss and its statistics take."""

import pytest
import torch
from helpers.train_rows import CPU, row

from sdkernels import recipes
from sdkernels.train.batch import collate
from sdkernels.train.config import SelfDistillConfig
from sdkernels.train.step_loss import StepLoss, make_gate
from sdkernels.train.teacher import TeacherWeights


@pytest.mark.parametrize(
    ("recipe", "settings", "student", "teacher"),
    [
        ("sdpo", {}, 0.7, None),
        ("sdpo", {"loss_temperature": 1.0}, 1.0, None),
        ("opsd", {}, 1.1, None),
        ("opsd", {"loss_temperature": 1.0}, 1.0, None),
        ("opsd", {"teacher_temperature": 0.9}, 1.1, 0.9),
    ],
)
def test_settings_win_over_the_recipe_and_the_recipe_over_sampling(
    tmp_path, recipe, settings, student, teacher
):
    config = SelfDistillConfig(output_dir=str(tmp_path), use_cpu=True, temperature=0.7, **settings)
    engine = StepLoss(config, recipes.get(recipe), gate=None, teacher=None).engine_settings
    assert engine["temperature"] == student
    assert engine["teacher_temperature"] == teacher


@pytest.mark.parametrize("valid_vocab", [None, 100])
def test_a_gate_sees_the_distribution_of_the_loss(tmp_path, make_model, valid_vocab):
    """At the temperature of the loss, over the entries that are real."""
    config = SelfDistillConfig(
        output_dir=str(tmp_path), use_cpu=True, temperature=0.7, valid_vocab=valid_vocab
    )
    recipe, model = recipes.get("dasd"), make_model()
    step_loss = StepLoss(config, recipe, make_gate(config, recipe), teacher=None)
    batch = collate([row([1, 2], [10, 11])], 0, CPU, with_teacher=False)
    entropy = step_loss.statistics(model, batch).entropy
    with torch.no_grad():
        logits = model.eval()(torch.tensor([[1, 2, 10, 11]])).logits[0, 1:-1, :valid_vocab]
    log_s = (logits / 0.7).log_softmax(-1)
    torch.testing.assert_close(entropy, -(log_s.exp() * log_s).sum(-1), rtol=1e-4, atol=1e-5)


def test_a_teacher_by_itself_has_its_own_temperature(tmp_path, make_model):
    """In SRPO's weights and for contrasting teachers."""
    config = SelfDistillConfig(
        output_dir=str(tmp_path), use_cpu=True, temperature=0.7, teacher_temperature=1.3
    )
    teacher = TeacherWeights("live", make_model())
    step_loss = StepLoss(config, recipes.get("srpo"), gate=None, teacher=teacher)
    assert step_loss.teacher.settings["temperature"] == 1.3


def test_settings_of_the_engine_arrive(tmp_path):
    settings = {"chunk_bytes": 12345, "slab_dtype": "model", "engine_backend": "torch"}
    config = SelfDistillConfig(
        output_dir=str(tmp_path), use_cpu=True, engine_debug=True, **settings
    )
    engine = StepLoss(config, recipes.get("sdpo"), gate=None, teacher=None).engine_settings
    assert (engine["chunk_bytes"], engine["slab_dtype"]) == (12345, "model")
    assert (engine["backend"], engine["debug"]) == ("torch", True)
