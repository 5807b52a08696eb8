"""SLURM jobs: what their script says, and builds with a real SLURM where it is installed."""

import inspect
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path

import pytest

import chores
from making import DATA, content
from servers import slurm as server
from trajmill.builder import build
from trajmill.engines import slurm
from trajmill.engines.base import Done, Lost, Task
from trajmill.engines.dask import DaskEngine
from trajmill.engines.slurm import SlurmJobs, SlurmOptions
from trajmill.errors import EngineError, RecipeError
from trajmill.recipe import load

jobqueue = slurm.dask_jobqueue()
PAGE = Path(__file__).parents[2] / "docs" / "cluster.md"


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """Make this machine one with SLURM, by the look of it."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sbatch").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")


def script(file):
    with SlurmJobs.load(file).scheduler() as cluster:
        return cluster.job_script()


def test_the_script_says_what_the_file_says(sbatch, tmp_path):
    file = tmp_path / "jobs.toml"
    file.write_text(
        """
        jobs = 20
        queue = "long"
        account = "materials"
        cores = 16
        memory = "64GB"
        processes = 8
        walltime = "12:00:00"
        job_name = "mill"
        job_extra_directives = ["--qos=low"]
        job_directives_skip = ["--mem="]
        job_script_prologue = ["module load python"]
        python = "/opt/python"
        worker_extra_args = ["--lifetime", "11h"]
        """
    )
    lines = script(file).splitlines()
    for line in ("-p long", "-A materials", "--cpus-per-task=16", "-t 12:00:00", "-J mill", "--qos=low"):
        assert f"#SBATCH {line}" in lines
    assert not [line for line in lines if "--mem=" in line]
    assert lines.index("export ARROW_DEFAULT_MEMORY_POOL=system") < lines.index("module load python")
    command = lines[-1].split()
    assert command[:3] == ["/opt/python", "-m", "distributed.cli.dask_worker"]
    options = dict(pairwise(command))
    assert {name: options[name] for name in ("--nthreads", "--nworkers", "--memory-limit", "--lifetime", "--name")} == {
        "--nthreads": "2", "--nworkers": "8", "--memory-limit": "7.45GiB", "--lifetime": "11h",
        "--name": "slurm-$SLURM_JOB_ID",
    }  # fmt: skip


def test_a_worker_per_core_unless_said_otherwise(sbatch, tmp_path):
    file = tmp_path / "jobs.toml"
    file.write_text('cores = 4\nmemory = "8GB"\n')
    assert "--nthreads 1 --memory-limit 1.86GiB --nworkers 4" in script(file)


def test_every_key_is_an_argument_of_dask_jobqueue_and_documented():
    known = {
        name
        for function in (
            jobqueue.SLURMCluster,
            jobqueue.core.JobQueueCluster,
            jobqueue.slurm.SLURMJob,
            jobqueue.core.Job,
        )
        for name in inspect.signature(function).parameters
    }
    assert set(SlurmOptions.model_fields) - known == {"jobs"}
    for key in SlurmOptions.model_fields:
        assert f"| `{key}` |" in PAGE.read_text("utf-8")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('cores = 1\nmemory = "1GB"\nqueu = "x"\n', "unknown key queu; known here: jobs, cores, memory, "),
        ("cores = 1\n", "memory: Field required"),
        ('cores = 0\nmemory = "1GB"\n', "cores: Input should be greater than or equal to 1"),
        ('cores = "many"\nmemory = "1GB"\n', "cores: Input should be a valid integer"),
        (
            'cores = 1\nmemory = "1GB"\njob_extra_directives = "--qos"\n',
            "job_extra_directives: Input should be a valid list",
        ),
        ("cores = \n", "not a TOML file"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(sbatch, tmp_path, text, message):
    file = tmp_path / "jobs.toml"
    file.write_text(text)
    with pytest.raises(RecipeError) as caught:
        SlurmJobs.load(file)
    assert str(caught.value).startswith(f"{file}: {message}")
    assert "\n" not in str(caught.value)


def test_ctrl_c_stays_what_it_is(sbatch):
    """Importing dask-jobqueue makes it end the program as if all were well."""
    code = """
import signal
from trajmill.engines.slurm import SlurmJobs, SlurmOptions
SlurmJobs(SlurmOptions(cores=1, memory="1GB"))
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_machine_without_slurm(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RecipeError, match="no sbatch on this machine"):
        SlurmJobs(SlurmOptions(cores=1, memory="1GB"))


# --- a real one


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A SLURM of one node."""
    with server.running(tmp_path_factory.mktemp("slurm") / "slurm"):
        yield


@pytest.fixture
def jobs(running, tmp_path, monkeypatch):
    """Make jobs of one core."""
    monkeypatch.setattr(slurm, "LOOK_EVERY", 2.0)

    def make(**options):
        told = {"log_directory": str(tmp_path / "logs"), "local_directory": str(tmp_path)}
        one = {"cores": 1, "memory": "450MB", "scheduler_options": {"host": "127.0.0.1"}}
        return SlurmJobs(SlurmOptions(**(told | one | options)))

    yield make
    chores.wait_for(lambda: queued() == "", what="jobs to end")


def queued(*options):
    return subprocess.run(["squeue", "--noheader", *options], capture_output=True, text=True, check=True).stdout.strip()


def test_a_build_in_jobs_makes_the_same_store(jobs, tmp_path):
    file = tmp_path / "jobs.toml"
    file.write_text(
        f'jobs = 2\ncores = 1\nmemory = "450MB"\nlog_directory = "{tmp_path}/logs"\nlocal_directory = "{tmp_path}"\n'
        'scheduler_options = { host = "127.0.0.1" }\n'
    )
    raw = f"alexandria.path='{DATA / 'alexandria'}'"
    here = build(load(settings=[raw, f"store.path='{tmp_path / 'here'}'", "engine.workers=1"]))
    told = [f"engine.slurm='{file}'", "engine.name=dask"]
    there = build(load(settings=[raw, f"store.path='{tmp_path / 'there'}'", *told]))
    assert there.balance == here.balance
    assert content(tmp_path / "there") == content(tmp_path / "here")
    assert len(list((tmp_path / "logs").glob("*.err"))) == 2


def test_a_job_that_ends_is_replaced(jobs, tmp_path):
    def cancel():
        chores.wait_for(lambda: chores.started(tmp_path))
        subprocess.run(["scancel", queued("--format=%A")], check=True)

    thread = threading.Thread(target=cancel)
    thread.start()
    seen = []
    for event in DaskEngine(jobs=jobs()).run([Task("t", chores.wait_for_go, tmp_path)]):
        seen.append(type(event))
        (tmp_path / "go").touch()
    thread.join()
    assert seen == [Lost, Done]
    assert len(list((tmp_path / "logs").glob("*.err"))) == 2


def test_idle_jobs_are_given_back(jobs, tmp_path):
    """The second job comes for the second task, and goes while the first is still at work."""
    tasks = [Task("long", chores.talk_until_go, tmp_path), Task("short", chores.double, 1)]
    done = []
    for event in DaskEngine(jobs=jobs(jobs=2)).run(tasks):
        done.extend([event.name] * isinstance(event, Done))
        if done == ["short"] and queued("--states=R,CG", "--format=%A").count("\n") == 0:
            (tmp_path / "go").touch()
    assert done == ["short", "long"]


def test_what_slurm_refuses_is_told(jobs):
    with pytest.raises(EngineError, match=r"(?s)SLURM takes no job: .*invalid partition specified: nosuch"):
        list(DaskEngine(jobs=jobs(queue="nosuch")).run([Task("t", chores.double, 1)]))


def test_jobs_that_fail_before_a_worker_comes_are_told(jobs, tmp_path):
    with pytest.raises(
        EngineError, match=rf"job \d+ ended before a worker came; what it printed is in {tmp_path}/logs"
    ):
        list(DaskEngine(jobs=jobs(job_script_prologue=["exit 1"])).run([Task("t", chores.double, 1)]))
