"""Limits where the kernel has control groups of version 2 and nothing else: a real executor manager in a machine of its
own, whose session manager and client are outside."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from http.server import HTTPServer, SimpleHTTPRequestHandler
from typing import Any, NamedTuple

import pytest
import yaml

import flame
from blackbox.trouble import until
from cluster import Cluster
from shared_time import MEASURE, SLACK
from unified import SOURCE, THIS_MACHINE, UnifiedMachine, booted
from untrusted import MIB, SERVICE

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="machines are emulated on x86_64 only")

UNIT = "/node.service"  # the group that systemd would make for the executor manager, with Delegate=yes
GROUPS = "/sys/fs/cgroup"
LIMITS = flame.Limits(memory=96 * MIB, pids=24, cpu_millis=800)


class Place(NamedTuple):
    """A cluster whose one node is in the machine."""

    connection: flame.Connection
    machine: UnifiedMachine
    pid: int

    def session(self, level: str, **options: Any) -> flame.Session:
        return self.connection.create_session("untrusted", isolation=level, **options)

    def groups(self) -> list[str]:
        """The control groups below that of the executor manager."""
        found = self.machine.run("/bin/busybox", "find", GROUPS + UNIT, "-mindepth", "1", "-type", "d").output
        return [line.removeprefix(GROUPS + UNIT) for line in found.splitlines()]

    def read(self, file: str) -> str:
        return self.machine.run("/bin/busybox", "cat", file).output


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("cgroup2")
    settings = {"recovery": {"task": {"max_kills": 1}}}
    with (
        Cluster(folder / "outside", nodes=0, settings=settings) as cluster,
        booted(folder, "/usr/bin/bwrap") as machine,
    ):
        endpoint = cluster.endpoint.replace("127.0.0.1", THIS_MACHINE)
        executors = {"capacity": "cpu=2,mem=4g"}
        config = {"cluster": {"name": "test", "endpoint": endpoint, "executors": executors}}
        machine.write("/tmp/node.yaml", yaml.safe_dump(config))
        machine.write(
            "/tmp/service/untrusted.py", "import os, sys, time\nfrom flame.service import *\n" + left(SERVICE)
        )
        with flame.connect(cluster.endpoint) as connection:
            connection.register_application(
                "untrusted",
                {
                    "command": sys.executable,
                    "arguments": ["/tmp/service/untrusted.py"],
                    "environments": {"PYTHONPATH": str(SOURCE)},
                    "limits": flame.Limits(pids=100),
                },
            )
            yield Place(connection, machine, start_node(machine, connection))


def start_node(machine: UnifiedMachine, connection: flame.Connection) -> int:
    """Start the executor manager in its group; its process, once it is there."""
    program = (sys.executable, "-m", "flame.node.daemon", "--config", "/tmp/node.yaml", "--name", "inside")
    pid, _ = machine.start(*program, "--work-dir", "/tmp/node", group=UNIT)
    until(connection.list_nodes, "the node in the machine")
    return pid


def left(text: str) -> str:
    return text.replace("\n    ", "\n")


def ask(session: flame.Session, source: str) -> Any:
    output = session.invoke(source.encode())
    assert output is not None
    return json.loads(output)


def test_an_executor_manager_that_is_alone_moves_into_a_group_below_and_hands_controllers_down(place: Place) -> None:
    (node,) = place.connection.list_nodes()
    assert node.labels["flame.limits"] == "yes"
    own = f"{UNIT}/flame-{place.pid}-manager"
    assert place.read(f"/proc/{place.pid}/cgroup") == f"0::{own}\n"
    assert place.read(f"{GROUPS}{UNIT}/cgroup.procs") == ""
    assert place.read(f"{GROUPS}{UNIT}/cgroup.subtree_control") == "cpu memory pids\n"


def test_nodes_of_one_process_share_its_group_and_leave_it_as_it_was(place: Place) -> None:
    source = """
import os
from flame.shims.limits import Groups
def where():
    return open('/proc/self/cgroup').read()[len('0::/embedded.service'):].strip().replace(str(os.getpid()), 'PID')
one, other = Groups.find(), Groups.find()
print([one.missing, other.missing, where()])
one.remove()
third = Groups.find()
print([third.missing, where()])
for each in (other, third):
    each.remove()
print([where(), [each.name for each in os.scandir('/sys/fs/cgroup/embedded.service') if each.is_dir()]])
"""
    said = place.machine.python(source, group="/embedded.service").splitlines()
    assert said == ["['', '', '/flame-PID-manager']", "['', '/flame-PID-manager']", "['', []]"]


NOT_ALONE = "other processes are in this group: start the executor manager in one of its own"
GIVEN_NONE = "it was given none; systemd gives them to units with Delegate=yes"


@pytest.mark.parametrize(("group", "why"), [("/shell.scope", NOT_ALONE), ("/held.service/below", GIVEN_NONE)])
def test_why_a_group_is_not_fit_is_said(place: Place, group: str, why: str) -> None:
    pid, _ = place.machine.start("/bin/busybox", "sleep", "3600", group=group)
    source = "from flame.shims.limits import Groups\nprint(Groups.find().missing, open('/proc/self/cgroup').read())"
    said = place.machine.python(source, group=group)
    assert said == f"no writable control groups for memory, pids, cpu ({GROUPS}{group}: {why}) 0::{group}\n\n"
    place.machine.run("/bin/busybox", "kill", str(pid))


def test_a_node_offers_what_its_group_may_use(place: Place) -> None:
    source = """
from flame.node.capacity import limits
group = '/sys/fs/cgroup/small.service/'
for name, text in (('memory.max', str(200 << 20)), ('cpu.max', '150000 100000')):
    open(group + name, 'w').write(text)
print(limits())
"""
    assert place.machine.python(source, group="/small.service") == f"(1, {200 * MIB})\n"


@pytest.mark.parametrize("level", ["none", "process"])
def test_what_is_limited_is_held_and_told(place: Place, level: str) -> None:
    with place.session(level, limits=LIMITS) as session:
        fork = """
children = []
try:
    while True:
        child = os.fork()
        if not child:
            time.sleep(3600)
        children.append(child)
except OSError as error:
    answer = [len(children), errno.errorcode[error.errno]]
for child in children:
    os.kill(child, 9)
    os.waitpid(child, 0)
"""
        number, why = ask(session, fork)
        assert why == "EAGAIN"
        assert 16 < number < LIMITS.pids
        busy = b"begun = time.process_time()\nwhile time.process_time() < begun + 0.3: pass\n"
        future = session.submit(busy + b"answer = os.environ['FLAME_EXECUTOR_ID']")
        output = future.result()
        assert output is not None
        executor = json.loads(output)
        (group,) = [group for group in place.groups() if group.endswith(executor)]
        assert "\nnr_throttled 0\n" not in place.read(f"{GROUPS}{UNIT}{group}/cpu.stat")
        task = session.get_task(future.task_id)
        assert task.cpu_seconds > 0.1
        assert 4 * MIB < task.peak_memory <= LIMITS.memory
        with pytest.raises(flame.TaskFailedError) as failed:
            session.invoke(b"held = [bytearray(1 << 20) for _ in range(400)]")
        assert f"ran out of memory: it needed more than its limit of {LIMITS.memory} bytes" in failed.value.message
        until(lambda: executor not in str(place.groups()), "the removal of its control group")
        with pytest.raises(flame.TaskFailedError) as failed:
            session.invoke(b"os._exit(3)")
        assert failed.value.message.endswith("the instance exited with status 3")
        session.close()
        until(lambda: session.refresh() or session.peak_memory, "the end of its executors")
        assert session.peak_memory > 90 * MIB
        assert session.cpu_seconds > 0.3
        until(lambda: len(place.groups()) == 2, "the removal of all control groups of its instances")


def test_groups_in_one_have_its_processor_time_together(place: Place) -> None:
    found = json.loads(place.machine.python(MEASURE, group="/shared.service").splitlines()[-1])
    assert found["missing"] == ""
    assert min(found["used"]) > 0
    assert sum(found["used"]) < found["allowed"] + SLACK
    assert found["left"] == []


def test_an_instance_and_the_proxy_of_its_network_have_its_processor_time_together(place: Place, web: str) -> None:
    with place.session("process", network=web) as session:
        fetch = f"import urllib.request; answer = urllib.request.urlopen('http://{web}/').status"
        assert ask(session, fetch) == 200
        executor = ask(session, "answer = os.environ['FLAME_EXECUTOR_ID']")
        (shared,) = [group for group in place.groups() if group.endswith(f"/{executor}-shared")]
        names = [f"/{executor}", f"/{executor}-network"]
        assert sorted(group for group in place.groups() if f"{shared}/" in group) == [shared + name for name in names]
        most = [place.read(f"{GROUPS}{UNIT}{shared}{name}/cpu.max") for name in ("", *names)]
        assert most == ["100000 100000\n", "100000 100000\n", "50000 100000\n"]
        assert all(place.read(f"{GROUPS}{UNIT}{shared}{name}/cgroup.procs") for name in names)
        session.close()
        until(lambda: executor not in str(place.groups()), "the removal of their control groups")


@pytest.fixture
def web() -> Iterator[str]:
    """A server of this machine, by the name that it has in the other."""
    with HTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield f"{THIS_MACHINE}:{server.server_port}"
        server.shutdown()
        serving.join()


def test_all_that_an_instance_left_behind_is_ended_with_the_groups_that_it_made(place: Place) -> None:
    """A process of a session of its own, with a wiped environment, in a control group that it made below its own."""
    source = """
own = '/sys/fs/cgroup' + open('/proc/self/cgroup').read()[3:].strip()
os.makedirs(own + '/mine/below')
if not os.fork():
    os.setsid()
    if os.fork():
        os._exit(0)
    open(own + '/mine/below/cgroup.procs', 'w').write('0')
    os.execve('/bin/busybox', ['sleep', '3600.5'], {})
os.wait()
while not open(own + '/mine/below/cgroup.procs').read():
    pass
answer = own
"""
    with place.session("none", min_instances=1) as other, place.session("none") as session:
        assert ask(other, "answer = 1") == 1
        own = ask(session, source)
        (left,) = place.read(f"{own}/mine/below/cgroup.procs").split()
        session.close()
        own_name = own.removeprefix(GROUPS + UNIT)
        until(lambda: not [each for each in place.groups() if each.startswith(own_name)], "the removal of its group")
        assert len(place.groups()) == 3  # the executor manager's, and that of the one that goes on
        assert "3600.5" not in place.read(f"/proc/{left}/cmdline")


def test_nothing_outlives_an_executor_manager_that_is_killed_and_the_next_one_leaves_no_group(place: Place) -> None:
    connection, machine, pid = place
    with place.session("none", min_instances=1) as session:
        assert ask(session, "answer = 1") == 1
        machine.run("/bin/busybox", "kill", "-KILL", str(pid))
        until(lambda: "populated 0" in place.read(f"{GROUPS}{UNIT}/cgroup.events"), "the end of all its processes")
        # As systemd does before it starts a unit again.
        done = machine.run("/bin/busybox", "find", GROUPS + UNIT, "-depth", "-type", "d", "-exec", "rmdir", "{}", ";")
        assert done.status == 0, done.output
        pid = start_node(machine, connection)
        assert ask(session, "answer = 2") == 2
    machine.run("/bin/busybox", "kill", "-TERM", str(pid))
    until(lambda: "populated 0" in place.read(f"{GROUPS}{UNIT}/cgroup.events"), "the end of the executor manager")
    assert place.groups() == []
    assert not place.read(f"{GROUPS}{UNIT}/cgroup.subtree_control").strip()
