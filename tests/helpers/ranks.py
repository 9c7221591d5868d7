"""Training runs in forked processes, one or several ranks each (gloo, CPU).

Starting python and importing torch and transformers takes ten seconds a process; here they are
imported once and every rank is a fork of that process. What `accelerate launch` would put into the
environment for a configuration file is put there too, by accelerate's own code.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

# A request is the settings, the environment of all ranks, their number and a file for the output.
ZYGOTE = """
import json, os, sys, traceback
import torch
torch.set_num_threads(1)
import faulthandler
from tests_driver import run_rank

def rank_process(rank, settings, environment, count, log):
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    faulthandler.dump_traceback_later(100, exit=True)  # a rank that waits forever says where
    os.environ.update(environment)
    if count > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count))
    status = 1
    try:
        status = run_rank(settings)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

for line in sys.stdin:
    settings, environment, count, log = json.loads(line)
    pids = []
    for rank in range(count):
        pid = os.fork()
        if pid == 0:
            rank_process(rank, settings, environment, count, log)
        pids.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    print(json.dumps(codes), flush=True)
"""


class Ranks:
    """Starts runs of `run_rank(settings)` of a driver file.

    Args:
        folder: for the driver and the output.
        driver: source that defines `run_rank`.
    """

    def __init__(self, folder: Path, driver: str) -> None:
        self.folder = folder
        self.log = folder / "output.log"
        (folder / "tests_driver.py").write_text(driver)
        paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = subprocess.Popen(
            [sys.executable, "-c", ZYGOTE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
        )

    def run(
        self,
        settings: dict[str, Any],
        count: int = 1,
        launch_config: Path | None = None,
        **own: str,
    ) -> tuple[list[int], str]:
        """Run `count` ranks; their exit statuses and the output of all of them.

        Args:
            launch_config: configuration file of `accelerate launch`.
            own: further environment variables.
        """
        self.log.unlink(missing_ok=True)
        environment = {} if launch_config is None else launch_environment(launch_config, count)
        if count > 1:
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        request = [settings, environment | own, count, str(self.log)]
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline()), self.log.read_text()

    def close(self) -> None:
        """End the process that forks."""
        self.process.kill()
        self.process.wait()


def launch_environment(config: Path, processes: int) -> dict[str, str]:
    """What `accelerate launch --config_file CONFIG --cpu` sets for its processes."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    words = ["--config_file", str(config), "--cpu", "--num_processes", str(processes)]
    words += ["--mixed_precision", "no", "--num_machines", "1", "train.py"]
    options, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    made = prepare_multi_gpu_env(options)
    names = ("ACCELERATE_", "FSDP_")
    return {name: value for name, value in made.items() if name.startswith(names)}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
