"""Training against a real server: its weights follow, its faults do not lose a rollout."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.completions_server import CompletionsServer

from sdkernels.train import run
from sdkernels.train.errors import RolloutError
from sdkernels.train.interrupt import StepAbandonedError
from sdkernels.train.journal import JOURNALS, Journal
from sdkernels.train.loading import add_lora
from sdkernels.train.rollout import Sampling
from sdkernels.train.server import ServerRollout
from sdkernels.train.trainer import SelfDistillTrainer
from sdkernels.train.weight_sync import FolderSync, NcclSync, server_root

SAMPLING = Sampling(max_new_tokens=6, temperature=0.9)


@pytest.fixture
def server(make_model, tokenizer, tmp_path) -> Iterator[CompletionsServer]:
    make_model().save_pretrained(tmp_path / "served")
    tokenizer.save_pretrained(tmp_path / "served")
    server = CompletionsServer(tmp_path / "served", tokenizer)
    yield server
    server.stop()


@pytest.fixture
def client(server, tokenizer):
    def make(**settings: Any) -> ServerRollout:
        return ServerRollout(
            server.url, tokenizer, **{"first_pause": 0.05, "retries": 5} | settings
        )

    return make


@pytest.fixture
def train(server, client, tokenizer, make_config, make_problems, make_model):
    def make(*, sync: bool, model: Any = None, **changes: Any) -> SelfDistillTrainer:
        settings = {"recipe": "sdpo", "learning_rate": 0.02, "max_steps": 3, "temperature": 0.9}
        trainer = SelfDistillTrainer(
            make_model() if model is None else model,
            make_config(**settings | changes),
            make_problems(4),
            tokenizer,
            rollout=client(logprobs=True),
            weight_sync=FolderSync(server.url, server.folder) if sync else None,
        )
        trainer.train()
        return trainer

    return make


def sampler_gaps(trainer: SelfDistillTrainer) -> list[float]:
    return [line["sampler_gap_abs"] for line in trainer.metrics_log.read()]


def test_a_folder_that_is_read_again_keeps_the_server_current(train, server):
    gaps = sampler_gaps(train(sync=True))
    assert max(gaps) < 1e-5
    assert server.posted.count("/collective_rpc") == server.posted.count("/reset_prefix_cache") == 3


def test_a_run_that_its_settings_describe(server, tokenizer, make_config, make_problems):
    config = make_config(
        model_name_or_path=str(server.folder),
        rollout_backend="server",
        rollout_server_url=server.url,
        rollout_server_sync="folder",
        rollout_server_folder=str(server.folder),
        rollout_server_logprobs=True,
        recipe="sdpo",
        learning_rate=0.02,
        save_strategy="steps",
        save_steps=1,
    )
    summary = run.train(config, run.Parts(examples=make_problems(4)))
    assert summary["rollout_counts"] == {"rows": 8, "retokenized": 0}
    assert summary["last"]["sampler_gap_abs"] < 1e-5
    assert summary["last"]["policy_drift"] is not None
    # Checkpoints hold what came of the rollouts, so none is kept twice.
    assert not list(Path(config.output_dir).glob(JOURNALS))


def test_without_it_the_distance_is_logged(train):
    first, *later = sampler_gaps(train(sync=False))
    assert first < 1e-5
    assert min(later) > 1e-3


def test_adapters_are_merged_on_the_way(train, make_model):
    model = add_lora(make_model(), r=4, alpha=8, dropout=0.0, target_modules=None)
    gaps = sampler_gaps(train(sync=True, model=model, learning_rate=0.05))
    assert max(gaps) < 1e-5


def test_a_server_that_comes_back_costs_time_only(server, client):
    whole = client().generate([[5, 6], [7], [8]], 2, SAMPLING, seed=1)
    server.stop()
    back = threading.Timer(0.3, server.start)
    back.start()
    assert client().generate([[5, 6], [7], [8]], 2, SAMPLING, seed=1) == whole
    back.join()


def test_slow_answers_are_waited_for(server, client):
    server.delay_seconds = 0.3
    groups = client(timeout=5.0).generate([[5]] * 3, 1, SAMPLING, seed=1)
    assert [len(group) for group in groups] == [1, 1, 1]
    with pytest.raises(RolloutError, match=r"no answer in 0\.05 s"):
        client(timeout=0.05, retries=0, model="tiny").generate([[5]], 1, SAMPLING, seed=1)


def test_a_wrong_name_is_answered_with_the_right_one(client):
    with pytest.raises(RolloutError, match="it serves tiny, not 'tinny': set rollout_server_model"):
        client(model="tinny").generate([[5]], 1, SAMPLING, seed=1)


def test_ids_that_are_not_given_are_measured(server, client):
    """Random bytes are seldom text, so tokenising them again gives other ids."""
    server.with_ids = False
    rollout = client()
    groups = rollout.generate([[5], [6]], 4, Sampling(max_new_tokens=12), seed=3)
    assert sum(map(len, groups)) == rollout.counts["rows"] == rollout.counts["retokenized"] == 8
    assert rollout.counts["mismatched"] > 0
    with pytest.raises(RolloutError, match="gives no token ids, so its log-probs"):
        client(logprobs=True).generate([[5]], 1, SAMPLING, seed=3)


def test_finished_rollouts_are_not_asked_for_again(server, client, tmp_path):
    file = tmp_path / "journal.jsonl"
    prompts = [[5], [6], [7], [8]]
    expected = client().generate(prompts, 2, SAMPLING, seed=1)
    server.answered.clear()

    def stop() -> None:
        if len(server.answered) >= 2:
            raise StepAbandonedError

    server.delay_seconds = 0.3
    cut = client(journal=Journal(file), concurrency=1, should_stop=stop)
    with pytest.raises(StepAbandonedError):
        cut.generate(prompts, 2, SAMPLING, seed=1)
    server.delay_seconds = 0.0
    kept = len(file.read_text().splitlines())
    assert 2 <= kept < 4
    server.answered.clear()
    resumed = client(journal=Journal(file))
    assert resumed.generate(prompts, 2, SAMPLING, seed=1) == expected
    assert len(server.answered) == 4 - kept
    assert resumed.counts["reused"] == 2 * kept
    resumed.generate(prompts, 2, SAMPLING, seed=2)  # another step's seed is another rollout
    assert len(server.answered) == 4 - kept + 4
    resumed.forget()
    assert not file.exists()


def test_servers_that_do_not_reload_are_named(server, tmp_path, make_model):
    with pytest.raises(ValueError, match=r"rollout_server_folder=.* holds no config"):
        FolderSync(server.url, tmp_path / "none")
    sync = FolderSync(server.url + "/v2/v1", server.folder)
    with pytest.raises(RolloutError, match="status 404; start vLLM with VLLM_SERVER_DEV_MODE=1"):
        sync.push(make_model(), main=True)


class TrlClient:
    """The part of TRL's `VLLMClient` that weight synchronisation uses."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.tensors: dict[str, torch.Tensor] = {}

    def init_communicator(self, device: Any) -> None:
        self.calls.append(f"init {device}")

    @contextlib.contextmanager
    def weight_update(self) -> Iterator[None]:
        self.calls.append("begin")
        yield
        self.calls.append("end")

    def update_named_param(self, name: str, weights: torch.Tensor) -> None:
        self.tensors[name] = weights

    def reset_prefix_cache(self) -> None:
        self.calls.append("reset")


def test_nccl_goes_through_trls_client(make_model):
    trl_client, model = TrlClient(), make_model()
    sync = NcclSync("http://localhost:8000/v1", "cuda:0", client=trl_client)
    sync.push(model, main=False)
    assert not trl_client.tensors
    sync.push(model, main=True)
    assert trl_client.calls == ["init cuda:0", "begin", "end", "reset"]
    assert {name for name, _ in model.named_parameters()} == set(trl_client.tensors)


def test_trls_client_has_what_we_call():
    vllm_client = pytest.importorskip("trl.generation.vllm_client")
    for name in ("init_communicator", "weight_update", "update_named_param", "reset_prefix_cache"):
        assert callable(getattr(vllm_client.VLLMClient, name)), name
    with pytest.raises(ValueError, match=r"needs TRL and vLLM .*or use 'folder'"):
        NcclSync("http://localhost:8000/v1", "cuda:0")


def test_the_root_of_a_url():
    assert server_root("http://h:1/v1/") == server_root("http://h:1") == "http://h:1"
