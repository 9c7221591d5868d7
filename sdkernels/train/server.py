"""Sample responses from an OpenAI-compatible completions server (vLLM, SGLang, llama.cpp, ...).

Prompts are sent as token ids. Response ids are taken from the server where it gives them (vLLM's
`return_token_ids`);
otherwise its text is tokenised again, which need not give back the sampled ids: such rows are
counted. The server has to serve the current weights: `weight_sync.py` gives them to it.
"""

from __future__ import annotations

import http.client
import json
import logging
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import Any

from sdkernels.train.errors import RolloutError
from sdkernels.train.journal import Journal
from sdkernels.train.rollout import Sample, Sampling, derived_seed

logger = logging.getLogger(__name__)

RETRIED_STATUS = {408, 409, 425, 429, 500, 502, 503, 504}
LONGEST_PAUSE_SECONDS = 30.0
POLL_SECONDS = 0.2


class _TransientError(Exception):
    """A failure that another request may not meet."""


class ServerRollout:
    """`RolloutBackend` over HTTP. A row that cannot be had stops the run; none is ever left out.

    Args:
        url: base URL of the API, e.g. `http://localhost:8000/v1`.
        tokenizer: the student's; the server must use the same.
        model: name to ask for; None takes the first that the server lists.
        timeout: seconds for one request.
        retries: further tries after a failed one, with pauses of 1, 2, 4, ... seconds.
        concurrency: requests in flight.
        api_key: bearer token; never logged.
        should_stop: asked while waiting; raising from it abandons the rollout.
        logprobs: ask for the sampled tokens' log-probs and put them into the samples.
        journal: keeps answers on disk; what is in it is not asked for again.

    Attributes:
        counts: `rows`, `reused` (out of the journal), `retokenized` (the server gave no ids) and
            `mismatched` (re-tokenising gave another number of tokens than the server counted, or
            does not decode to the same text).

    Raises:
        RolloutError: the server is down, refuses, or answers nonsense after all retries.
    """

    def __init__(
        self,
        url: str,
        tokenizer: Any,
        *,
        model: str | None = None,
        timeout: float = 120.0,
        retries: int = 4,
        concurrency: int = 16,
        api_key: str | None = None,
        should_stop: Callable[[], None] | None = None,
        first_pause: float = 1.0,
        logprobs: bool = False,
        journal: Journal | None = None,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"rollout_server_url={url!r}: expected http://host:port/v1")
        self.url = url.rstrip("/")
        self.tokenizer = tokenizer
        self.timeout = timeout
        self.retries = retries
        self.concurrency = concurrency
        self.should_stop = should_stop
        self.counts: Counter[str] = Counter()
        self.journal = journal
        self._logprobs = logprobs
        self._api_key = api_key
        self._first_pause = first_pause
        self._model = model
        self._warned = False

    def generate(
        self, prompts_ids: list[list[int]], num_generations: int, sampling: Sampling, *, seed: int
    ) -> list[list[Sample]]:
        """See `RolloutBackend.generate`."""
        if self._model is None:
            self._model = self._first_model()
        requests = [
            self._request(ids, num_generations, sampling, derived_seed(seed, i) % 2**31)
            for i, ids in enumerate(prompts_ids)
        ]
        with ThreadPoolExecutor(max_workers=self.concurrency) as pool:
            futures = [pool.submit(self._complete, request) for request in requests]
            open_futures = set(futures)
            try:
                while open_futures:
                    done, open_futures = wait(
                        open_futures, POLL_SECONDS, return_when=FIRST_COMPLETED
                    )
                    for future in done:
                        future.result()
                    if self.should_stop is not None:
                        self.should_stop()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        groups = [self._to_samples(future.result()) for future in futures]
        self._report()
        return groups

    def forget(self) -> None:
        """Clear the journal."""
        if self.journal is not None:
            self.journal.clear()

    def _request(self, ids: list[int], n: int, sampling: Sampling, seed: int) -> dict[str, Any]:
        request: dict[str, Any] = {
            "model": self._model,
            "prompt": ids,
            "n": n,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed,
            "return_token_ids": True,
        }
        # Extensions of the API: only sent where they matter, because strict servers refuse unknown
        # fields.
        if sampling.top_k:
            request["top_k"] = sampling.top_k
        if sampling.min_p is not None:
            request["min_p"] = sampling.min_p
        if sampling.repetition_penalty != 1.0:
            request["repetition_penalty"] = sampling.repetition_penalty
        if self._logprobs:
            request["logprobs"] = 1
        return request | sampling.extra

    def _first_model(self) -> str:
        answer = self._retrying(lambda: self._call("GET", "/models", None))
        try:
            return str(answer["data"][0]["id"])
        except (KeyError, IndexError, TypeError) as error:
            raise RolloutError(
                f"rollout server {self.url}: /models lists no model ({_excerpt(answer)}); set "
                "rollout_server_model"
            ) from error

    def _complete(self, request: dict[str, Any]) -> dict[str, Any]:
        known = None if self.journal is None else self.journal.get(request)
        if known is not None:
            self.counts["reused"] += request["n"]
            return known

        def attempt() -> dict[str, Any]:
            try:
                answer = self._call("POST", "/completions", request)
            except RolloutError as error:
                raise RolloutError(f"{error}{self._served()}") from error
            problem = _problem(answer, request["n"])
            if problem:
                raise _TransientError(f"{problem}: {_excerpt(answer)}")
            return answer

        answer = self._retrying(attempt)
        if self.journal is not None:
            self.journal.add(request, answer)
        return answer

    def _served(self) -> str:
        """What the server lists, for the message of a refusal that a wrong name may explain."""
        try:
            names = [str(model["id"]) for model in self._call("GET", "/models", None)["data"]]
        except (RolloutError, _TransientError, KeyError, TypeError):
            return ""
        if self._model in names:
            return ""
        return f"; it serves {', '.join(names)}, not {self._model!r}: set rollout_server_model"

    def _retrying(self, attempt: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        for tried in range(self.retries + 1):
            try:
                return attempt()
            except _TransientError as error:
                if tried == self.retries:
                    raise RolloutError(
                        f"rollout server {self.url}: no usable answer in {tried + 1} tries, last: "
                        f"{error}; check that it "
                        f"runs and serves model {self._model!r}, then resume"
                    ) from error
                pause = min(self._first_pause * 2**tried, LONGEST_PAUSE_SECONDS)
                logger.warning("rollout server %s: %s; again in %.1f s", self.url, error, pause)
                time.sleep(pause)
        raise AssertionError("unreachable: the last try returns or raises")

    def _call(self, method: str, path: str, payload: dict[str, Any] | None) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        data = None if payload is None else json.dumps(payload).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                answer = json.loads(response.read())
        except urllib.error.HTTPError as error:
            with error:
                reason = f"status {error.code}: {_excerpt(error.read(2000))}"
            if error.code in RETRIED_STATUS:
                raise _TransientError(reason) from error
            raise RolloutError(
                f"rollout server {self.url} refuses the request, {reason}"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            cause = getattr(error, "reason", None) or error
            late = isinstance(cause, TimeoutError)
            raise _TransientError(
                f"no answer in {self.timeout:g} s" if late else str(cause)
            ) from error
        except ValueError as error:
            raise _TransientError("the answer is not JSON") from error
        if not isinstance(answer, dict):
            raise _TransientError(f"the answer is no JSON object: {_excerpt(answer)}")
        return answer

    def _to_samples(self, answer: dict[str, Any]) -> list[Sample]:
        choices = sorted(answer["choices"], key=lambda choice: choice.get("index", 0))
        samples = [self._to_sample(choice) for choice in choices]
        without_ids = [choice for choice in choices if not choice.get("token_ids")]
        self.counts["rows"] += len(choices)
        self.counts["retokenized"] += len(without_ids)
        if without_ids:
            told = (answer.get("usage") or {}).get("completion_tokens")
            ours = sum(len(sample.token_ids) for sample in samples)
            ended = sum(not sample.truncated for sample in samples)
            # Servers count the end-of-turn token or not.
            differs = told is not None and told not in (ours, ours - ended)
            self.counts["mismatched"] += len(without_ids) if differs else 0
        return samples

    def _to_sample(self, choice: dict[str, Any]) -> Sample:
        truncated = choice.get("finish_reason") == "length"
        if choice.get("token_ids"):
            ids = [int(token) for token in choice["token_ids"]]
            text = self.tokenizer.decode(ids, skip_special_tokens=True)
            logprobs = self._logprobs_of(choice, len(ids)) if self._logprobs else None
            return Sample(token_ids=ids, text=text, truncated=truncated, logprobs=logprobs)
        if self._logprobs:
            raise RolloutError(
                f"rollout server {self.url} gives no token ids, so its log-probs belong to tokens "
                "that are not known; set rollout_server_logprobs=false"
            )
        text = choice["text"]
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if self.tokenizer.decode(ids) != text:
            self.counts["mismatched"] += 1
        if not truncated:
            ids = [*ids, self.tokenizer.eos_token_id]
        return Sample(token_ids=ids, text=text, truncated=truncated)

    def _logprobs_of(self, choice: dict[str, Any], length: int) -> list[float]:
        given = (choice.get("logprobs") or {}).get("token_logprobs") or []
        if len(given) != length or not all(isinstance(value, int | float) for value in given):
            raise RolloutError(
                f"rollout server {self.url} gives {len(given)} log-probs for {length} tokens; set "
                "rollout_server_logprobs=false"
            )
        return [float(value) for value in given]

    def _report(self) -> None:
        if self.counts["retokenized"] and not self._warned:
            self._warned = True
            logger.warning(
                "rollout server %s gives no token ids: responses are tokenised again, and where "
                "that differs from what "
                "was sampled the student is trained on its neighbour (counted as `mismatched`). "
                "vLLM >= 0.10.2 gives them.",
                self.url,
            )


def _problem(answer: dict[str, Any], n: int) -> str | None:
    """What is wrong with a completions answer, None if nothing is."""
    choices = answer.get("choices")
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        return "the answer has no list of choices"
    if len(choices) != n:
        return f"asked for {n} responses, got {len(choices)}"
    for choice in choices:
        ids = choice.get("token_ids")
        if ids and not (isinstance(ids, list) and all(isinstance(token, int) for token in ids)):
            return "token_ids are not whole numbers"
        if not ids and not isinstance(choice.get("text"), str):
            return "a choice has neither token_ids nor text"
        if choice.get("finish_reason") not in ("stop", "length"):
            return f"finish_reason {choice.get('finish_reason')!r} instead of stop or length"
    return None


def _excerpt(answer: Any) -> str:
    text = answer.decode("utf-8", "replace") if isinstance(answer, bytes) else json.dumps(answer)
    text = " ".join(text.split())
    return text if len(text) <= 200 else text[:200] + "..."
