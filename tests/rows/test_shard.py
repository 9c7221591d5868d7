"""A vocabulary split over processes gives what one process gives: losses, statistics, gradients.

The processes run every check of `helpers/vocab_parallel.py` in one go; each check of each rank is a
test here.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sdkernels.rows.shard import VocabShard

WORKER = Path(__file__).parents[1] / "helpers" / "vocab_parallel.py"


@pytest.mark.parametrize("world", [2, 4])
def test_a_split_vocabulary_is_the_whole_one(world: int, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", WORKER, str(rank), str(world), tmp_path / "store"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    results = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=240)
            assert process.returncode == 0, err[-2000:]
            results.append(json.loads(out.strip().splitlines()[-1]))
    finally:
        for process in processes:
            process.kill()
    failed = {
        f"rank {rank}, {name}": found
        for rank, result in enumerate(results)
        for name, found in result.items()
        if found != "ok"
    }
    assert not failed, "\n".join(f"{name}: {found}" for name, found in failed.items())
    assert len(results[0]) > 30


def test_ids_of_other_slices_fall_outside() -> None:
    shard = VocabShard(None, 13, (13, 28), 41, 1 << 20)
    assert shard.widest == 28
    assert shard.local(torch.tensor([0, 12, 13, 40])).tolist() == [-13, -1, 0, 27]
