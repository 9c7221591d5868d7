"""A critic behind an OpenAI-compatible server."""

from __future__ import annotations

import http.client
import json
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sdkernels.contexts.critic import CachedCritic
from sdkernels.contexts.types import Message
from sdkernels.contexts.writer import Reply

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 16 * 2**20
MAX_WAIT_SECONDS = 30.0
RETRIED_STATUS = {408, 409, 425, 429, 500, 502, 503, 504}


class CriticError(RuntimeError):
    """The critic server can't be used: names the url, what came, and what to do."""


class _RetryableError(Exception):
    """A failure that another try may mend."""

    def __init__(self, reason: str, wait_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds


class ServerCritic(CachedCritic):
    """Critiques from a `/v1/chat/completions` endpoint (vLLM, SGLang, llama.cpp, ...).

    Args:
        url: the server (`http://host:8000`), its `/v1`, or the endpoint itself.
        model: name of the model there.
        max_tokens: limit of a critique, in tokens.
        timeout_seconds: limit of one request, from connecting to the last byte.
        tries: requests per critique before giving up.
        backoff_seconds: wait after the first failure; doubled after each further one, at most 30 s.
        concurrency: requests at a time.
        api_key: sent as a bearer token; never logged or cached.
        cache_dir: folder of the cache; None keeps nothing between calls.
        tokenizer: its control tokens are taken out of the prompts: the server's model's own, or
            that of the student, whose data they are. None sends prompts as they are.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        max_tokens: int = 2048,
        timeout_seconds: float = 120.0,
        tries: int = 4,
        backoff_seconds: float = 1.0,
        concurrency: int = 8,
        api_key: str | None = None,
        cache_dir: str | Path | None = None,
        tokenizer: Any = None,
    ) -> None:
        super().__init__(cache_dir, tokenizer)
        for name, value in (
            ("max_tokens", max_tokens),
            ("tries", tries),
            ("concurrency", concurrency),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if timeout_seconds <= 0:
            raise ValueError(f"timeout_seconds must be above 0, got {timeout_seconds}")
        self.url = endpoint(url)
        self.model = model
        self.max_tokens = max_tokens
        self.timeout_seconds = timeout_seconds
        self.tries = tries
        self.backoff_seconds = backoff_seconds
        self.concurrency = concurrency
        self._api_key = api_key

    def _identity(self) -> dict[str, Any]:
        # Not the url: the same model may be back on another port.
        return {"model": self.model, "max_tokens": self.max_tokens, "temperature": 0}

    def check(self) -> None:
        """Ask for one token, to learn before training whether the server works.

        Raises:
            CriticError: it does not.
        """
        self._complete([{"role": "user", "content": "Say yes."}], max_tokens=1, tries=1)

    def _ask(self, prompts: Sequence[list[Message]]) -> Iterator[tuple[int, Reply | None]]:
        if not prompts:
            return
        pool = ThreadPoolExecutor(max_workers=self.concurrency)
        futures = {pool.submit(self._complete, prompt): i for i, prompt in enumerate(prompts)}
        failure: BaseException | None = None
        try:
            for future in as_completed(futures):
                if future.cancelled():
                    continue
                error = future.exception()
                if error is None:
                    yield futures[future], future.result()
                elif failure is None:
                    failure = error
                    for other in futures:  # what runs already may still bring a reply
                        other.cancel()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        if failure is not None:
            raise failure

    def _complete(
        self, messages: list[Message], max_tokens: int | None = None, tries: int | None = None
    ) -> Reply:
        tries = self.tries if tries is None else tries
        payload = {
            "model": self.model,
            "messages": messages,
            "temperature": 0,
            "max_tokens": max_tokens or self.max_tokens,
        }
        for attempt in range(1, tries + 1):
            try:
                return _read_reply(self._post(payload))
            except _RetryableError as error:
                if attempt == tries:
                    raise CriticError(
                        f"critic server {self.url}: no usable answer in {tries} "
                        f"{'try' if tries == 1 else 'tries'}, last: {error}. Check that it is "
                        f"running and serves model {self.model!r}; critiques that came are "
                        "cached, so a new run goes on from here."
                    ) from error
                wait = max(error.wait_seconds, self.backoff_seconds * 2 ** (attempt - 1))
                wait = min(wait, MAX_WAIT_SECONDS)
                logger.warning("critic server %s: %s; again in %.1f s", self.url, error, wait)
                time.sleep(wait)
        raise AssertionError("unreachable: the last try returns or raises")

    def _post(self, payload: dict[str, Any]) -> bytes:
        headers = {"Content-Type": "application/json"}
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        request = urllib.request.Request(
            self.url, data=json.dumps(payload).encode(), headers=headers, method="POST"
        )
        deadline = time.monotonic() + self.timeout_seconds
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_seconds) as response:
                return _read_body(response, deadline)
        except urllib.error.HTTPError as error:
            with error:
                reason = f"status {error.code} {error.reason}: {_excerpt(error.read(2000))}"
            if error.code in RETRIED_STATUS:
                raise _RetryableError(reason, _retry_after(error.headers)) from error
            raise CriticError(
                f"critic server {self.url} refuses the request, {reason}. Check the url, the "
                f"model name {self.model!r} and the api key."
            ) from error
        except (OSError, http.client.HTTPException) as error:
            cause = getattr(error, "reason", None) or error
            timed_out = isinstance(cause, TimeoutError)
            reason = f"no answer in {self.timeout_seconds:g} s" if timed_out else f"{cause!r}"
            raise _RetryableError(reason) from error


def endpoint(url: str) -> str:
    """The chat completions endpoint of a server given by any of its usual urls."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"url must start with http:// or https:// and name a host, got {url!r}")
    path = parts.path.rstrip("/")
    if not path.endswith("/chat/completions"):
        path = f"{path}/chat/completions" if path.endswith("/v1") else f"{path}/v1/chat/completions"
    return parts._replace(path=path).geturl()


def _read_body(response: Any, deadline: float) -> bytes:
    """The body, with a limit on its size and on the total time: a socket limits single reads."""
    chunks = []
    size = 0
    while chunk := response.read1(65536):
        chunks.append(chunk)
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise _RetryableError(f"the answer is longer than {MAX_BODY_BYTES} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError
    return b"".join(chunks)


def _read_reply(body: bytes) -> Reply:
    try:
        choice = json.loads(body)["choices"][0]
        content = choice["message"]["content"]
    except ValueError as error:
        raise _RetryableError(f"the answer is not JSON: {_excerpt(body)}") from error
    except (KeyError, IndexError, TypeError) as error:
        raise _RetryableError(
            f"the answer has no choices[0].message.content: {_excerpt(body)}"
        ) from error
    # None is what servers send when a reasoning model spent its tokens before answering.
    if content is not None and not isinstance(content, str):
        raise _RetryableError(f"choices[0].message.content is not a text: {_excerpt(body)}")
    return Reply(content or "", cut=choice.get("finish_reason") == "length")


def _retry_after(headers: Any) -> float:
    try:
        return max(0.0, float(headers.get("Retry-After", 0)))
    except ValueError:  # it may be a date
        return 0.0


def _excerpt(body: bytes) -> str:
    text = " ".join(body.decode("utf-8", errors="replace").split())
    return repr(text if len(text) <= 200 else text[:200] + "...")
