"""The client of a rollout server, against a server in a thread that misbehaves on request."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from sdkernels.train.errors import RolloutError
from sdkernels.train.rollout import Sampling
from sdkernels.train.server import ServerRollout


class Server:
    """Answers with what `respond(request, number)` gives: status and body."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.respond: Callable[[dict[str, Any], int], tuple[int, Any]] = self.completion
        self.with_ids = True
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                request = json.loads(self.rfile.read(length)) | {"path": self.path}
                owner.requests.append(request)
                status, body = owner.respond(request, len(owner.requests))
                self._send(status, body)

            def do_GET(self) -> None:
                self._send(200, {"data": [{"id": "tiny"}]})

            def _send(self, status: int, body: Any) -> None:
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                """Keep the test's output clean."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def completion(self, request: dict[str, Any], _number: int) -> tuple[int, Any]:
        choices = []
        for index in reversed(range(request["n"])):  # order is the server's affair
            choice: dict[str, Any] = {"index": index, "text": f"r{index}", "finish_reason": "stop"}
            if self.with_ids:
                choice["token_ids"] = [20 + index, 30, 0]
            choices.append(choice)
        return 200, {"choices": choices, "usage": {"completion_tokens": 3 * request["n"]}}


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def client(server, tokenizer):
    def make(**settings: Any) -> ServerRollout:
        return ServerRollout(
            server.url, tokenizer, **{"first_pause": 0.01, "retries": 2} | settings
        )

    return make


SAMPLING = Sampling(max_new_tokens=5, temperature=0.7)


def test_ids_of_the_server_are_taken_as_they_are(server, client):
    rollout = client()
    groups = rollout.generate([[5, 6], [7]], 2, SAMPLING, seed=1)
    assert [[sample.token_ids for sample in group] for group in groups] == [
        [[20, 30, 0], [21, 30, 0]]
    ] * 2
    assert not any(sample.truncated for group in groups for sample in group)
    first = sorted(server.requests, key=lambda request: -len(request["prompt"]))[0]
    assert first["prompt"] == [5, 6]
    assert first["path"] == "/v1/completions"
    assert (first["model"], first["n"], first["max_tokens"]) == ("tiny", 2, 5)
    assert first["temperature"] == 0.7
    assert "top_k" not in first  # an extension that strict servers refuse
    assert rollout.counts == {"rows": 4, "retokenized": 0}


def test_seeds_differ_by_prompt_and_repeat(server, client):
    client().generate([[5], [5]], 1, SAMPLING, seed=1)
    client().generate([[5], [5]], 1, SAMPLING, seed=1)
    seeds = sorted(request["seed"] for request in server.requests)
    assert seeds[0] == seeds[1] != seeds[2] == seeds[3]


def test_without_ids_the_text_is_tokenised_and_counted(server, client, tokenizer, caplog):
    server.with_ids = False
    rollout = client()
    with caplog.at_level(logging.WARNING):
        ((first, second),) = rollout.generate([[5]], 2, SAMPLING, seed=1)
    expected = [*tokenizer("r0")["input_ids"], tokenizer.eos_token_id]
    assert (first.token_ids, first.text) == (expected, "r0")
    # The server counted three tokens each, as we do: "r0" and the end of the turn.
    assert rollout.counts == {"rows": 2, "retokenized": 2, "mismatched": 0}
    assert "gives no token ids" in caplog.text
    assert not second.truncated


def test_a_different_count_is_a_mismatch(server, client):
    server.with_ids = False

    def longer(request: dict[str, Any], number: int) -> tuple[int, Any]:
        status, body = server.completion(request, number)
        return status, body | {"usage": {"completion_tokens": 50}}

    server.respond = longer
    rollout = client()
    rollout.generate([[5]], 2, SAMPLING, seed=1)
    assert rollout.counts["mismatched"] == 2


def test_truncated_responses_get_no_end(server, client, tokenizer):
    server.with_ids = False
    choice = {"index": 0, "text": "cut", "finish_reason": "length"}
    server.respond = lambda *_: (200, {"choices": [choice]})
    ((sample,),) = client().generate([[5]], 1, SAMPLING, seed=1)
    assert sample.truncated
    assert sample.token_ids == tokenizer("cut")["input_ids"]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_failed_request_is_tried_again(server, client, status, caplog):
    server.respond = lambda request, number: (
        (status, {"error": "busy"}) if number < 3 else server.completion(request, number)
    )
    with caplog.at_level(logging.WARNING):
        groups = client().generate([[5]], 2, SAMPLING, seed=1)
    assert len(groups[0]) == 2
    assert caplog.text.count("again in") == 2


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html>", "the answer is not JSON"),
        ([1], "the answer is no JSON object"),
        ({"choices": []}, "asked for 2 responses, got 0"),
        ({"choices": "x"}, "no list of choices"),
        ({"choices": [{"finish_reason": "stop"}] * 2}, "neither token_ids nor text"),
        ({"choices": [{"text": "a", "finish_reason": "error"}] * 2}, "finish_reason 'error'"),
        ({"choices": [{"token_ids": ["a"], "finish_reason": "stop"}] * 2}, "not whole numbers"),
    ],
)
def test_garbage_stops_the_run_and_is_shown(server, client, body, message):
    server.respond = lambda *_: (200, body)
    with pytest.raises(RolloutError, match=f"no usable answer in 3 tries, last: .*{message}"):
        client().generate([[5]], 2, SAMPLING, seed=1)
    assert len(server.requests) == 3


def test_a_refusal_is_not_repeated(server, client):
    server.respond = lambda *_: (404, {"error": "no such model"})
    with pytest.raises(RolloutError, match=r"refuses the request, status 404: .*no such model"):
        client().generate([[5]], 1, SAMPLING, seed=1)
    assert len(server.requests) == 1


def test_a_server_that_is_down(tokenizer):
    rollout = ServerRollout(
        "http://127.0.0.1:9/v1", tokenizer, model="m", retries=1, first_pause=0.01
    )
    with pytest.raises(RolloutError, match=r"127\.0\.0\.1:9.*no usable answer in 2 tries.*resume"):
        rollout.generate([[5]], 1, SAMPLING, seed=1)
    with pytest.raises(ValueError, match="expected http://host:port/v1"):
        ServerRollout("localhost:8000", tokenizer)


def test_a_server_that_hangs(server, client):
    def slow(request: dict[str, Any], number: int) -> tuple[int, Any]:
        time.sleep(1.0)
        return server.completion(request, number)

    server.respond = slow
    begun = time.monotonic()
    with pytest.raises(RolloutError, match=r"no answer in 0\.1 s"):
        client(timeout=0.1, retries=0).generate([[5]], 1, SAMPLING, seed=1)
    assert time.monotonic() - begun < 5


def test_waiting_can_be_abandoned(server, client):
    class EnoughError(Exception):
        pass

    def stop() -> None:
        raise EnoughError

    server.respond = lambda request, number: (time.sleep(0.5), server.completion(request, number))[
        1
    ]
    with pytest.raises(EnoughError):
        client(should_stop=stop).generate([[5]] * 4, 1, SAMPLING, seed=1)


def test_the_key_is_sent_and_never_shown(server, client):
    server.respond = lambda *_: (401, {"error": "bad key"})
    with pytest.raises(RolloutError) as caught:
        client(api_key="sk-secret", model="m").generate([[5]], 1, SAMPLING, seed=1)
    assert "sk-secret" not in str(caught.value)
