"""Give a rollout server the current weights, through vLLM's own interfaces.

folder    the weights are written into the folder that the server serves, and it is told to read
          them again (`/collective_rpc` with `reload_weights`; vLLM with VLLM_SERVER_DEV_MODE=1)
nccl      TRL's `VLLMClient` sends them from GPU to GPU (vLLM with `--weight-transfer-config`)

Tensors travel under the names of the model without adapters; LoRA updates are merged into them.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Protocol

from sdkernels.train.errors import RolloutError
from sdkernels.train.teacher import effective_parameters

HOW_TO_SERVE = "start vLLM with VLLM_SERVER_DEV_MODE=1, or keep the server current yourself"


class WeightSync(Protocol):
    """Brings the server's weights up to date."""

    def push(self, model: Any, *, main: bool) -> None:
        """Send the student's weights. Every rank calls it, since sharded tensors are gathered; the
        main one sends.
        """
        ...


class FolderSync:
    """Writes a folder and asks the server to read it.

    Args:
        url: base URL of the OpenAI API, e.g. `http://localhost:8000/v1`.
        folder: what the server serves; it already holds the model's other files.
        timeout: seconds for the server to read the weights.
    """

    def __init__(self, url: str, folder: str | Path, *, timeout: float = 600.0) -> None:
        self.root = server_root(url)
        self.folder = Path(folder)
        self.timeout = timeout
        if not (self.folder / "config.json").is_file():
            raise ValueError(
                f"rollout_server_folder={str(folder)!r} holds no config.json: give the folder that "
                "the server was started with, so that it reads the weights written there"
            )

    def push(self, model: Any, *, main: bool) -> None:
        """See `WeightSync.push`.

        Raises:
            RolloutError: the server does not take the weights.
        """
        state = dict(effective_parameters(model))
        if not main:
            return
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        inner.save_pretrained(str(self.folder), state_dict=state)
        self._post("/collective_rpc", {"method": "reload_weights"})
        self._post("/reset_prefix_cache", {})

    def _post(self, path: str, payload: dict[str, Any]) -> None:
        request = urllib.request.Request(
            self.root + path,
            data=json.dumps(payload).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                response.read()
        except urllib.error.HTTPError as error:
            with error:
                raise RolloutError(
                    f"rollout server {self.root}{path}: status {error.code}; {HOW_TO_SERVE} "
                    "(rollout_server_sync=none)"
                ) from error
        except OSError as error:
            raise RolloutError(
                f"rollout server {self.root}{path}: {error}; restart it and resume"
            ) from error


class NcclSync:
    """TRL's client for vLLM's weight transfer between GPUs.

    Args:
        url: as in `FolderSync`.
        device: of the main process.
        client: an open `VLLMClient`; None: one is made, which needs TRL and vLLM.
    """

    def __init__(self, url: str, device: Any, *, client: Any = None) -> None:
        if client is None:
            try:
                from trl.generation.vllm_client import VLLMClient

                client = VLLMClient(base_url=server_root(url), connection_timeout=60.0)
            except ImportError as error:
                raise ValueError(
                    f"rollout_server_sync='nccl' needs TRL and vLLM ({error}); install them, or "
                    "use 'folder', which needs neither here"
                ) from error
        self.client = client
        self.client.init_communicator(device)

    def push(self, model: Any, *, main: bool) -> None:
        """See `WeightSync.push`."""
        if not main:
            for _ in effective_parameters(model):
                pass
            return
        with self.client.weight_update():
            for name, tensor in effective_parameters(model):
                self.client.update_named_param(name, tensor)
        self.client.reset_prefix_cache()


def server_root(url: str) -> str:
    """The server's address without the `/v1` of its OpenAI API."""
    return url.rstrip("/").removesuffix("/v1")
