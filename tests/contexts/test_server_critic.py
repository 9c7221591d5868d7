"""A critic behind a server: a real one on this machine, with all the ways it can fail."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from helpers.word_tokenizer import WordTokenizer

from sdkernels.contexts import CriticError, Example, Rollout, ServerCritic
from sdkernels.contexts.sample import EXAMPLE, ROLLOUTS
from sdkernels.contexts.server_critic import endpoint

Answer = tuple[int, bytes] | tuple[int, bytes, dict[str, str]]


def chat(text: str | None, reason: str = "stop") -> Answer:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": reason}
    return 200, json.dumps({"choices": [choice]}).encode()


class Server:
    """Answers from `script`, called with the number of the request and its JSON."""

    def __init__(self, script: Callable[[int, dict[str, Any]], Answer]) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(outer.requests)
                    outer.requests.append(body)
                    outer.headers.append(dict(self.headers))
                    outer.paths.append(self.path)
                status, reply, *extra = script(number, body)
                self.send_response(status)
                for name, value in (extra[0] if extra else {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, *args: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *args: object) -> None:
                pass  # a client that went away is a part of these tests

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers = []

    def start(script: Callable[[int, dict[str, Any]], Answer]) -> Server:
        servers.append(Server(script))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def critic(url: str, **settings: Any) -> ServerCritic:
    fast = {"timeout_seconds": 5.0, "backoff_seconds": 0.01, "tries": 3, **settings}
    return ServerCritic(url, "m", **fast)


def pairs(*texts: str) -> list[tuple[Example, Rollout]]:
    return [(EXAMPLE, Rollout("sample", i, text, [1])) for i, text in enumerate(texts)]


def test_the_request_and_the_reply(serve: Any) -> None:
    server = serve(lambda n, body: chat("<think>hm</think>Step 1: good"))
    asked = critic(server.url, max_tokens=77)
    assert asked.critique([(EXAMPLE, ROLLOUTS[0])]) == ["Step 1: good"]
    [request] = server.requests
    assert request["model"] == "m"
    assert request["temperature"] == 0
    assert request["max_tokens"] == 77
    assert "36 + 7 = 43" in request["messages"][0]["content"]
    assert server.paths == ["/v1/chat/completions"]
    assert "Authorization" not in server.headers[0]


def test_control_tokens_in_an_attempt_are_not_sent(serve: Any) -> None:
    """The server applies its chat template to what comes, so that one would open another turn."""
    server = serve(lambda n, body: chat("good"))
    critic(server.url, tokenizer=WordTokenizer()).critique(pairs("one<|im_end|>two"))
    [request] = server.requests
    assert "onetwo" in request["messages"][0]["content"]


def test_the_api_key_is_sent_and_not_shown(serve: Any, tmp_path: Path) -> None:
    server = serve(lambda n, body: (401, b"no such key"))
    asked = critic(server.url, api_key="secret-key", cache_dir=tmp_path)
    with pytest.raises(CriticError) as caught:
        asked.critique(pairs("a"))
    assert server.headers[0]["Authorization"] == "Bearer secret-key"
    assert "secret-key" not in f"{caught.value}{asked!r}{asked._identity()}"


def test_many_rows_come_back_in_order(serve: Any) -> None:
    def script(number: int, body: dict[str, Any]) -> Answer:
        attempt = body["messages"][0]["content"].split("[student's attempt]\n")[1].split("\n")[0]
        time.sleep(0.05 if attempt.endswith("0") else 0)
        return chat(f"reviewed {attempt}")

    server = serve(script)
    texts = [f"attempt {i}" for i in range(20)]
    assert critic(server.url).critique(pairs(*texts)) == [f"reviewed {text}" for text in texts]
    assert len(server.requests) == 20


def test_a_cut_reply_is_used_and_counted_an_empty_one_is_none(serve: Any) -> None:
    replies = {"a": chat("Step 1", "length"), "b": chat(None), "c": chat("")}

    def script(number: int, body: dict[str, Any]) -> Answer:
        return replies[body["messages"][0]["content"].split("[student's attempt]\n")[1][0]]

    asked = critic(serve(script).url)
    assert asked.critique(pairs("a", "b", "c")) == ["Step 1", None, None]
    assert asked.counts["cut"] == 1
    assert asked.counts["unusable"] == 2


@pytest.mark.parametrize(
    "bad",
    [
        (500, b"oops"),
        (429, b"slow down", {"Retry-After": "0.01"}),
        (503, b"", {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}),
        (200, b"<html>not json</html>"),
        (200, b'{"choices": []}'),
        (200, b'{"error": "x"}'),
        (200, b"[1]"),
        (200, b'{"choices": [{"message": {"content": 3}}]}'),
    ],
)
def test_a_passing_failure_is_tried_again(
    serve: Any, bad: Answer, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(lambda n, body: bad if n == 0 else chat("Step 1"))
    with caplog.at_level(logging.WARNING):
        assert critic(server.url).critique(pairs("a")) == ["Step 1"]
    assert len(server.requests) == 2
    assert server.url in caplog.text


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ((500, b"oops\nagain"), r"status 500 Internal Server Error: 'oops again'"),
        ((200, b"\xff garbage"), r"the answer is not JSON: '\ufffd garbage'"),
        (
            (200, b'{"choices": [{}]}'),
            r"no choices\[0\]\.message\.content: '{\"choices\": \[{}\]}'",
        ),
    ],
)
def test_a_lasting_failure_says_what_came_and_what_to_do(
    serve: Any, bad: Answer, reason: str
) -> None:
    server = serve(lambda n, body: bad)
    with pytest.raises(CriticError, match=reason) as caught:
        critic(server.url).critique(pairs("a"))
    assert len(server.requests) == 3
    message = str(caught.value)
    assert f"{server.url}/v1/chat/completions" in message
    assert "in 3 tries" in message
    assert "Check that it is running and serves model 'm'" in message
    assert "\n" not in message


def test_a_refusal_is_not_tried_again(serve: Any) -> None:
    server = serve(lambda n, body: (404, b'{"detail": "model not found"}'))
    with pytest.raises(CriticError, match=r"status 404 .*model not found.*model name 'm'"):
        critic(server.url).critique(pairs("a"))
    assert len(server.requests) == 1


def test_a_server_that_is_down(serve: Any) -> None:
    server = serve(lambda n, body: chat("x"))
    server.close()
    with pytest.raises(CriticError, match=r"no usable answer in 3 tries.*[Rr]efused"):
        critic(server.url).critique(pairs("a"))
    # Before training one try is enough to say so.
    with pytest.raises(CriticError, match=r"no usable answer in 1 try, last.*[Rr]efused"):
        critic(server.url).check()


def test_a_slow_server_is_given_up(serve: Any) -> None:
    def script(number: int, body: dict[str, Any]) -> Answer:
        time.sleep(1.0)
        return chat("late")

    start = time.perf_counter()
    with pytest.raises(CriticError, match=r"no answer in 0\.1 s"):
        critic(serve(script).url, timeout_seconds=0.1, tries=2).critique(pairs("a"))
    assert time.perf_counter() - start < 0.9


def test_a_server_that_trickles_is_given_up_too() -> None:
    import socket

    listener = socket.create_server(("127.0.0.1", 0))

    def trickle() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            for _ in range(40):
                try:
                    connection.sendall(b"x")
                except OSError:
                    return
                time.sleep(0.05)

    threading.Thread(target=trickle, daemon=True).start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    start = time.perf_counter()
    with listener, pytest.raises(CriticError, match=r"no answer in 0\.3 s"):
        critic(url, timeout_seconds=0.3, tries=1).check()
    assert time.perf_counter() - start < 1.5


def test_an_endless_answer_is_given_up(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdkernels.contexts.server_critic.MAX_BODY_BYTES", 1000)
    server = serve(lambda n, body: chat("x" * 2000))
    with pytest.raises(CriticError, match="longer than 1000 bytes"):
        critic(server.url, tries=1).check()


def test_finished_critiques_survive_a_failure(serve: Any, tmp_path: Path) -> None:
    def script(number: int, body: dict[str, Any]) -> Answer:
        attempt = body["messages"][0]["content"].split("[student's attempt]\n")[1][0]
        return (400, b"too long") if attempt == "c" else chat(f"reviewed {attempt}")

    server = serve(script)
    with pytest.raises(CriticError, match="status 400"):
        critic(server.url, cache_dir=tmp_path, concurrency=1).critique(pairs("a", "b", "c", "d"))
    assert len(server.requests) in (3, 4)  # d may have been under way
    again = critic(server.url, cache_dir=tmp_path)
    assert again.critique(pairs("a", "b")) == ["reviewed a", "reviewed b"]
    assert again.counts["cached"] == 2


def test_an_early_check(serve: Any) -> None:
    server = serve(lambda n, body: chat("yes"))
    critic(server.url).check()
    assert server.requests[0]["max_tokens"] == 1


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://h:1", "http://h:1/v1/chat/completions"),
        ("http://h:1/", "http://h:1/v1/chat/completions"),
        ("https://h/v1/", "https://h/v1/chat/completions"),
        ("http://h/api/v1", "http://h/api/v1/chat/completions"),
        ("http://h/v1/chat/completions", "http://h/v1/chat/completions"),
    ],
)
def test_endpoint(url: str, expected: str) -> None:
    assert endpoint(url) == expected


@pytest.mark.parametrize("url", ["file:///etc/passwd", "localhost:8000", "http://", "ftp://h"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"url must start with http:// or https://"):
        ServerCritic(url, "m")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tries": 0}, "tries must be at least 1, got 0"),
        ({"concurrency": 0}, "concurrency must be at least 1"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"timeout_seconds": 0}, "timeout_seconds must be above 0"),
    ],
)
def test_bad_settings(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ServerCritic("http://h", "m", **settings)  # type: ignore[arg-type]
