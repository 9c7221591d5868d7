"""A real completions server on the CPU: a transformers model behind HTTP, with vLLM's API.

It samples, gives token ids and log-probs, reads its weights again when told to, and can be stopped
and started on the same port.
"""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM


class CompletionsServer:
    """Serves the model of a folder.

    Args:
        folder: the model.
        tokenizer: its tokenizer.

    Attributes:
        name: the model's name in the API.
        with_ids: whether token ids are given.
        delay_seconds: before each answer.
        answered: prompts of the completions answered so far.
    """

    def __init__(self, folder: Path, tokenizer: Any) -> None:
        self.folder, self.tokenizer = folder, tokenizer
        self.name = "tiny"
        self.with_ids = True
        self.delay_seconds = 0.0
        self.answered: list[list[int]] = []
        self.posted: list[str] = []
        self._lock = threading.Lock()
        self.reload()
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def reload(self) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(self.folder).eval()

    def start(self) -> None:
        """Listen, on the port of before."""
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._send(200, {"data": [{"id": owner.name}]})

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self._send(*owner.respond(self.path, json.loads(body)))

            def _send(self, status: int, answer: Any) -> None:
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                """Keep the test's output clean."""

        class Listening(ThreadingHTTPServer):
            allow_reuse_address = True
            daemon_threads = True

        self._http = Listening(("127.0.0.1", self.port), Handler)
        self.port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Close the port, as a server that died."""
        self._http.shutdown()
        self._http.server_close()

    def respond(self, path: str, request: dict[str, Any]) -> tuple[int, Any]:
        """Status and answer."""
        self.posted.append(path)
        if path == "/collective_rpc" and request["method"] == "reload_weights":
            self.reload()
            return 200, {}
        if path == "/reset_prefix_cache":
            return 200, {}
        if path != "/v1/completions":
            return 404, {"error": f"no {path}"}
        if request["model"] != self.name:
            return 404, {"error": f"The model `{request['model']}` does not exist."}
        time.sleep(self.delay_seconds)
        with self._lock:
            choices = [self._choice(request, i) for i in range(request["n"])]
            self.answered.append(request["prompt"])
        used = sum(len(choice["token_ids"]) for choice in choices)
        if not self.with_ids:
            choices = [{k: v for k, v in c.items() if k != "token_ids"} for c in choices]
        return 200, {"choices": choices, "usage": {"completion_tokens": used}}

    @torch.no_grad()
    def _choice(self, request: dict[str, Any], index: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(request["seed"] + index)
        ids, logps, end = list(request["prompt"]), [], self.tokenizer.eos_token_id
        while len(logps) < request["max_tokens"] and (not logps or ids[-1] != end):
            logits = self.model(torch.tensor([ids])).logits[0, -1] / request["temperature"]
            logp = logits.log_softmax(-1)
            ids.append(int(torch.multinomial(logp.exp(), 1, generator=generator)))
            logps.append(float(logp[ids[-1]]))
        tokens = ids[len(request["prompt"]) :]
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        choice: dict[str, Any] = {"index": index, "text": text, "token_ids": tokens}
        choice["finish_reason"] = "stop" if ids[-1] == end else "length"
        if request.get("logprobs"):
            choice["logprobs"] = {"token_logprobs": logps}
        return choice
