"""A real Slurm on loopback for the tests: its own munged, slurmctld and one slurmd a node, all state in one folder."""

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "sinfo")
SEARCH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
MISSING = [name for name in PROGRAMS if shutil.which(name, path=SEARCH) is None]


def configuration(folder: Path, nodes: int, cpus: int, ports: list[int]) -> str:
    """slurm.conf: loopback only, no accounting, a scheduler that looks once a second."""
    user = "root" if os.geteuid() == 0 else os.environ["USER"]
    settings = {
        "ClusterName": "tests",
        "FirstJobId": 1 + 1000 * ports[0],  # another cluster may run beside it, and processes are found by their job
        "SlurmctldHost": f"{socket.gethostname().partition('.')[0]}(127.0.0.1)",
        "SlurmctldPort": ports[0],
        "SlurmdPort": ports[1],
        "CommunicationParameters": "NoCtldInAddrAny,NoInAddrAny",
        "SlurmUser": user,
        "SlurmdUser": user,
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={folder}/munge.socket",
        "CredType": "cred/munge",
        "StateSaveLocation": folder / "state",
        "SlurmdSpoolDir": folder / "spool-%n",
        "SlurmctldPidFile": folder / "slurmctld.pid",
        "SlurmdPidFile": folder / "slurmd-%n.pid",
        "SlurmctldLogFile": folder / "slurmctld.log",
        "SlurmdLogFile": folder / "slurmd-%n.log",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core",
        "SchedulerType": "sched/backfill",
        "SchedulerParameters": "bf_interval=1,sched_interval=1,sched_min_interval=0,batch_sched_delay=0",
        "AccountingStorageType": "accounting_storage/none",
        "JobAcctGatherType": "jobacct_gather/none",
        "MpiDefault": "none",
        "ReturnToService": 2,
        "SlurmdParameters": "config_overrides",
        "JobRequeue": 1,
        "KillWait": 5,
        "GresTypes": "gpu",
    }
    lines = [f"{key}={value}" for key, value in settings.items()]
    host = socket.gethostname().partition(".")[0]
    for node, port in zip(range(1, nodes + 1), ports[2:], strict=True):
        address = f"NodeName=n{node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port}"
        lines.append(f"{address} CPUs={cpus} RealMemory=4000 Gres=gpu:2")
    lines.append("PartitionName=tests Nodes=ALL Default=YES MaxTime=INFINITE State=UP")
    return "\n".join(lines) + "\n"


@contextmanager
def slurm(folder: Path, nodes: int = 2, cpus: int = 2) -> Iterator[dict[str, str]]:
    """Starts a cluster in an empty folder; what its clients need in their environment."""
    folder.chmod(0o755)
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(secrets.token_bytes(1024))
    conf = folder / "slurm.conf"
    conf.write_text(configuration(folder, nodes, cpus, free_ports(nodes + 2)))
    (folder / "gres.conf").write_text("Name=gpu File=/dev/tty[0-1]\n")  # Slurm asks for a device file, whatever it is
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    environment = {"SLURM_CONF": str(conf), "PATH": SEARCH}
    clients = {**os.environ, **environment}
    try:
        munge = [f"--key-file={key}", f"--socket={folder}/munge.socket", f"--pid-file={folder}/munged.pid"]
        munge += [f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge.seed"]
        for command in (
            ["munged", *munge],
            ["slurmctld", "-f", str(conf), "-c"],
            *(["slurmd", "-f", str(conf), "-N", f"n{node}"] for node in range(1, nodes + 1)),
        ):
            subprocess.run(command, env=clients, check=True, timeout=30)
        for _ in range(300):
            query = ["timeout", "5", "sinfo", "-h", "-N", "-t", "idle", "-o", "%N"]
            idle = subprocess.run(query, env=clients, capture_output=True, text=True).stdout.split()
            if len(idle) == nodes:
                break
            time.sleep(0.1)
        else:
            logs = "\n".join(path.read_text() for path in folder.glob("*.log"))
            raise RuntimeError(f"the cluster did not come up:\n{logs}")
        yield environment
    finally:
        subprocess.run(["timeout", "10", "scancel", "--full", "--state=RUNNING"], env=clients)
        time.sleep(0.5)
        for path in [*folder.glob("slurmd-*.pid"), folder / "slurmctld.pid", folder / "munged.pid"]:
            stop(path)


def stop(pid_file: Path) -> None:
    """Stops the daemon of a pid file, gently first."""
    if not pid_file.exists():
        return
    pid = int(pid_file.read_text())
    for signum in (15, 9):
        try:
            os.kill(pid, signum)
        except ProcessLookupError:
            return
        for _ in range(50):
            if not Path(f"/proc/{pid}").exists():
                return
            time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens at."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
