"""A real Slurm (apt: slurm-wlm, munge) of two nodes, both this machine: pre-empted jobs, and jobs of many processes."""

import getpass
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import pytest

from .conftest import ROOT
from .test_ddp import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "sinfo", "scancel")
N_EPOCHS = 12
pytestmark = pytest.mark.slow
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser={user}
SlurmdUser={user}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
NodeName={host} NodeHostname={host} NodeAddr=127.0.0.1 Port={first_port} CPUs=1 State=UNKNOWN
NodeName={host}-2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second_port} CPUs=1 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


@pytest.fixture(scope="module")
def slurm():
    """The environment in which the cluster's commands find it."""
    if missing := [name for name in PROGRAMS if not program(name)]:
        pytest.skip(f"no Slurm here: {', '.join(missing)} not found (apt-get install slurm-wlm munge)")
    pytest.importorskip("submitit", reason='pip install -e ".[slurm]"')
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)
    daemons = []
    try:
        yield _start(folder, daemons)
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _start(folder: Path, daemons: list) -> dict[str, str]:
    (folder / "state").mkdir()
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)
    names = {"host": socket.gethostname(), "user": getpass.getuser(), "folder": folder}
    conf = folder / "slurm.conf"
    ports = {f"{name}_port": free_port() for name in ("ctld", "first", "second")}
    conf.write_text(CONF.format(**names, **ports))
    environment = {**os.environ, "SLURM_CONF": str(conf)}
    munge = [f"--{k}-file={folder}/munge.{k}" for k in ("key", "pid", "log", "seed")]
    for command in (
        [program("munged"), "--foreground", "--force", f"--socket={folder}/munge.socket", *munge],
        [program("slurmctld"), "-D"],
        [program("slurmd"), "-D", "-N", names["host"]],
        [program("slurmd"), "-D", "-N", f"{names['host']}-2"],
    ):
        log = (folder / f"{Path(command[0]).name}.out").open("ab")
        daemons.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        time.sleep(1)
    for _ in range(60):
        found = subprocess.run(["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True)
        if found.stdout.strip() == "idle":
            return environment
        time.sleep(1)
    logs = "\n".join(f"{p.name}:\n{p.read_text(errors='replace')[-2000:]}" for p in folder.glob("*.[lo][ou][gt]"))
    pytest.fail(f"Slurm does not start: {found.stdout}{found.stderr}\n{logs}")


def _command(small, *flags: str) -> list[str]:
    """crossval.py on the smallest of everything."""
    own = ["--corpus=emodb", f"--data_folder={small.corpus('emodb')}", f"--encoder={small.backbone()}", "--device=cpu"]
    own += ["--spec_augment=False", "--tokens=characters", "--lr=0.001", "--folds=3"]
    own += [f"--manifest_folder={small.folder / 'manifests'}"]
    return [sys.executable, str(ROOT / "crossval.py"), str(ROOT / "hparams" / "cai_mtl.yaml"), *own, *flags]


def test_crossval_preempted_and_resumed(slurm, small, tmp_path):
    """One job is taken away, one is warned that it will be, crossval itself is killed: runs end as if undisturbed."""
    command = _command(small, f"--n_epochs={N_EPOCHS}", "--sweep=alpha=0,0.1")
    environment = {**slurm, "OMP_NUM_THREADS": "1"}

    there = tmp_path / "cluster"
    on_slurm = ["--executor=slurm", "--slurm={gpus: 0, cpus: 1, time: 30, partition: main}"]

    def begin() -> subprocess.Popen:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": tmp_path}
        return subprocess.Popen([*command, *on_slurm, f"--results_folder={there}"], env=environment, **pipes)

    crossval = begin()
    try:
        taken, warned = _wait(lambda: _both(there.glob("cai_mtl/*/*/03/1/save/CKPT*/CKPT.yaml")), crossval)
        jobs = {folder: folder.with_name("1.job").read_text() for folder in (taken, warned)}
        subprocess.run(["scontrol", "requeue", jobs[taken]], env=slurm, check=True)
        subprocess.run(["scancel", "--signal=USR2", jobs[warned]], env=slurm, check=True)
        epochs_then = min(len(pd.read_csv(folder / "epochs.csv")) for folder in jobs)
        crossval.kill()
        crossval.wait()
        assert {p.name for p in there.glob("cai_mtl/*/*/03/*.job")} == {"1.job"}
        crossval = begin()
        out, _ = crossval.communicate(timeout=400)
    finally:
        crossval.kill()
    print(out)
    assert crossval.returncode == 0, out
    for folder, job in jobs.items():
        log = folder.with_name("1.log").read_text()
        print(*(line for line in log.splitlines() if re.search("Slurm job|resumed|Going into", line)), sep="\n")
        starts = re.findall(r"Slurm job (\d+), start (\d+)", log)
        assert starts == [(job, "0"), (job, "1")]  # the job went on without crossval, and no second one was queued
        (epoch,) = re.findall(r"resumed after epoch (\d+)", log)
        assert epochs_then - 1 <= int(epoch) < N_EPOCHS  # a row is written just before its checkpoint
        assert pd.read_csv(folder / "epochs.csv")["epoch"].tolist() == list(range(1, N_EPOCHS + 1))
    assert not list(there.glob("**/*.job")) and not list(there.glob("**/*.lock"))

    here = tmp_path / "here"
    subprocess.run([*command, f"--results_folder={here}", "--jobs=2"], env=environment, cwd=tmp_path, check=True)
    for mine in sorted(here.glob("cai_mtl/**/metrics.json")):
        theirs = there / mine.relative_to(here)
        assert json.loads(mine.read_text()) == json.loads(theirs.read_text())
        for name in ("predictions.csv", "epochs.csv"):
            assert (mine.parent / name).read_bytes() == (theirs.parent / name).read_bytes()


@pytest.mark.parametrize("settings", ["nodes: 1, processes: 2", "nodes: 2, processes: 1"])
def test_a_run_of_two_processes(slurm, small, tmp_path, settings):
    """On one node, and on two: the result is that of one process."""
    command = _command(small, "--n_epochs=2", "--dropout=0", "--layerdrop=0")
    environment = {**slurm, "OMP_NUM_THREADS": "1"}
    there, here = tmp_path / "cluster", tmp_path / "here"
    on_slurm = ["--executor=slurm", f"--slurm={{{settings}, gpus: 0, cpus: 1, time: 30}}"]
    for where, how in ((there, on_slurm), (here, [])):
        argv = [*command, *how, f"--results_folder={where}"]
        done = subprocess.run(argv, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=400)
        logs = "\n".join(log.read_text() for log in where.glob("**/1.log"))
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{logs}"
        assert ("shared by 2 processes" in logs) is (where == there) and logs.count("results: ") == 1
        print(logs)
    for name in ("epochs.csv", "predictions.csv"):
        one, two = (pd.read_csv(next(folder.glob(f"cai_mtl/**/{name}"))) for folder in (here, there))
        pd.testing.assert_frame_equal(one, two, rtol=1e-4, atol=1e-5)


def _both(files):
    found = sorted({file.parents[2] for file in files})
    return found if len(found) == 2 else None


def _wait(condition, process, seconds: float = 120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        if process.poll() is not None:
            break
        time.sleep(0.1)
    pytest.fail(f"nothing happened; crossval says:\n{process.communicate(timeout=30)[0] if process.poll() else ''}")
