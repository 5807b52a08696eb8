"""A SLURM of one node on loopback, for tests: controller, node and authentication in a folder of their own.

Debian's packages `slurm-wlm` and `munge` have it. Nothing of the machine's own SLURM is touched; all ends by itself.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

LIFETIME = "300"
"""Seconds after which the daemons are ended whatever happens."""

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=1,batch_sched_delay=0
MinJobAge=2
KillWait=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1000 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(command: list[str], expected: str, folder: Path) -> None:
    end = time.monotonic() + 30
    while expected not in (said := subprocess.run(command, capture_output=True, text=True, check=False).stdout):
        if time.monotonic() > end:
            logs = "\n".join(log.read_text()[-2000:] for log in folder.glob("*.log"))
            raise TimeoutError(f"{command} said {said!r} and not {expected!r} for 30 s\n{logs}")
        time.sleep(0.1)


@contextmanager
def running(folder: Path) -> Iterator[None]:
    """Run SLURM; its commands find it by SLURM_CONF. Skip the test where it is not installed, fail on CI."""
    missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if not _find(name)]
    if missing and os.environ.get("CI") != "true":
        pytest.skip(f"no SLURM here: {', '.join(missing)} not found (Debian: slurm-wlm, munge)")
    folder.mkdir(mode=0o755)
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    configuration = folder / "slurm.conf"
    configuration.write_text(
        CONFIGURATION.format(
            host=socket.gethostname().partition(".")[0], controller=_free_port(), node=_free_port(), folder=folder,
            user=os.environ.get("USER", "root"), cpus=os.cpu_count(),
        )
    )  # fmt: skip
    files = {
        "key-file": "munge.key", "socket": "munge.socket", "pid-file": "munge.pid", "log-file": "munge.log",
        "seed-file": "munge.seed",
    }  # fmt: skip
    munge = [f"--{option}={folder / name}" for option, name in files.items()]
    daemons = {
        "munged": ["--foreground", "--force", *munge],
        "slurmctld": ["-D", "-f", str(configuration)],
        "slurmd": ["-D", "-f", str(configuration)],
    }
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(configuration))
        for name, arguments in daemons.items():
            log = stack.enter_context((folder / f"{name}.log").open("w"))
            process = subprocess.Popen(["timeout", LIFETIME, _find(name), *arguments], stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            if name == "munged":
                _wait_for(["ls", str(folder)], "munge.socket\n", folder)
        _wait_for(["sinfo", "--noheader", "--format=%t"], "idle", folder)
        yield


def _find(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
