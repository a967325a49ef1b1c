"""Tasks: run, watch, list, get, fail; payloads; events; nodes and executors."""

import time
from concurrent.futures import as_completed, wait

import flamepy
import grpc
from checks import main, raised, refused, service_application, unique
from flamepy import FlameErrorCode, TaskState
from flamepy.proto.frontend_pb2 import CreateTaskRequest, GetTaskRequest, ListTaskRequest, WatchTaskRequest
from flamepy.proto.types_pb2 import TaskSpec


def frontend():
    return flamepy.core.client.ConnectionInstance.instance()._frontend


def a_session(**options):
    return flamepy.create_session(service_application(), **options)


def check_a_task_as_created():
    session = a_session()
    task = session.create_task(b"echo:one")
    assert (task.id, task.session_id, task.state, task.input) == ("1", session.id, TaskState.PENDING, b"echo:one")
    assert task.completion_time is None
    assert session.create_task(b"echo:two").id == "2"


def check_invoke_and_run():
    session = a_session()
    assert session.invoke(b"echo:hello") == b"hello"
    futures = [session.run(b"echo:%d" % number) for number in range(50)]
    assert [future.result(60) for future in futures] == [b"%d" % number for number in range(50)]
    session.close()


def check_futures_work_with_the_standard_library():
    session = a_session()
    futures = [session.run(b"echo:%d" % number) for number in range(8)]
    done, left = wait(futures, timeout=60)
    assert (len(done), len(left)) == (8, 0)
    assert {future.result() for future in as_completed(futures)} == {b"%d" % number for number in range(8)}
    session.close()


def check_outputs_absent_and_empty():
    session = a_session()
    assert session.invoke(b"none") is None
    assert session.invoke(b"echo:") == b""
    assert session.get_task("1").output is None
    assert session.get_task("2").output == b""
    session.close()


def check_inputs_empty_and_absent():
    session = a_session()
    session.invoke(b"")
    assert session.get_task("1").input == b""
    made = frontend().CreateTask(CreateTaskRequest(task=TaskSpec(session_id=session.id)))
    assert not made.spec.HasField("input")
    list(session.watch_task(made.metadata.id))
    assert session.get_task("2").input is None
    session.close()


def check_large_payloads():
    session = a_session()
    data = bytes(range(256)) * 6000  # input and output together stay below the client's own limit of 4 MiB
    assert session.invoke(b"echo:" + data) == data
    session.close()


def check_a_failed_task():
    session = a_session()
    future = session.run(b"fail:no such luck")
    error = raised(lambda: future.result(60))
    assert error.code == FlameErrorCode.INTERNAL
    assert error.message == "no such luck"
    task = session.get_task("1")
    assert (task.state, task.output, task.is_failed()) == (TaskState.FAILED, None, True)
    assert [event.code for event in task.events] == [0, 1, 3]
    assert task.events[0].message == "Task was created with state <Pending>"
    assert task.events[1].message == "Task state was updated to <Running>"
    assert task.events[2].message == "no such luck"
    assert flamepy.get_session(session.id).failed == 1
    assert session.invoke(b"echo:still alive") == b"still alive"
    session.close()


def check_the_events_of_a_task_that_succeeded():
    session = a_session()
    session.invoke(b"echo:")
    task = session.get_task("1")
    assert [(event.code, event.message) for event in task.events] == [
        (0, "Task was created with state <Pending>"),
        (1, "Task state was updated to <Running>"),
        (2, "Task was completed with state <Succeed>"),
    ]
    assert task.completion_time >= task.creation_time
    session.close()


def check_watching_a_task_that_takes_a_while():
    session = a_session()
    session.invoke(b"echo:warm")
    task = session.create_task(b"sleep:0.5")
    seen = [update.state for update in session.watch_task(task.id)]
    assert seen == [TaskState.RUNNING, TaskState.SUCCEED], seen
    session.close()


def check_watching_an_ended_task_gives_one_update():
    session = a_session()
    session.invoke(b"echo:x")
    updates = list(session.watch_task("1"))
    assert [(update.state, update.output) for update in updates] == [(TaskState.SUCCEED, b"x")]
    session.close()


def check_a_watched_failure_carries_its_event():
    session = a_session()
    task = session.create_task(b"fail:watch me")
    *_, last = session.watch_task(task.id)
    assert last.state == TaskState.FAILED
    assert [event.message for event in last.events if event.code == 3] == ["watch me"]
    session.close()


def check_watching_what_does_not_exist_ends_at_once():
    session = a_session()
    assert list(session.watch_task("77")) == []
    assert list(frontend().WatchTask(WatchTaskRequest(task_id="1", session_id=unique("missing")))) == []
    for bad in ("x", "-", "1.5", ""):
        error = raised(lambda bad=bad: list(session.watch_task(bad)))
        assert "invalid task id" in error.message
    session.close()


def check_getting_what_does_not_exist():
    session = a_session()
    assert raised(lambda: session.get_task("5")).message == "failed to get task: 5"
    assert raised(lambda: session.get_task("five")).message == "failed to get task: invalid task id"
    name = unique("missing")
    call = GetTaskRequest(task_id="1", session_id=name)
    assert refused(lambda: frontend().GetTask(call)) == (grpc.StatusCode.NOT_FOUND, name)
    session.close()


def check_tasks_of_an_unknown_session():
    name = unique("missing")
    create = CreateTaskRequest(task=TaskSpec(session_id=name, input=b""))
    assert refused(lambda: frontend().CreateTask(create)) == (grpc.StatusCode.NOT_FOUND, name)
    listing = ListTaskRequest(session_id=name)
    assert refused(lambda: list(frontend().ListTask(listing))) == (grpc.StatusCode.NOT_FOUND, name)
    assert refused(lambda: frontend().CreateTask(CreateTaskRequest()))[0] == grpc.StatusCode.INVALID_ARGUMENT


def check_list():
    session = a_session()
    wait([session.run(b"echo:%d" % number) for number in range(40)], timeout=60)
    tasks = list(session.list_tasks())
    assert [task.id for task in tasks] == [str(number) for number in range(1, 41)]
    assert [task.input for task in tasks] == [b"echo:%d" % number for number in range(40)]
    assert [task.output for task in tasks] == [b"%d" % number for number in range(40)]
    assert {task.state for task in tasks} == {TaskState.SUCCEED}
    session.close()
    assert len(list(session.list_tasks())) == 40


def check_closing_cancels_what_waits_and_refuses_while_something_runs():
    session = a_session(max_instances=1)
    session.invoke(b"echo:warm")
    running = session.run(b"sleep:1")
    waiting = session.create_task(b"sleep:1")
    while flamepy.get_session(session.id).running == 0:
        time.sleep(0.01)
    error = raised(session.close)
    assert "Cannot close session with running tasks" in error.message
    assert running.result(60) == b"slept"
    list(session.watch_task(waiting.id))
    other = flamepy.create_session("flmping", max_instances=1, min_instances=0, resreq=flamepy.ResourceRequirement(64))
    left = other.create_task(b"")  # no node has 64 cores: it waits
    closed = flamepy.close_session(other.id)
    assert closed.state == flamepy.SessionState.CLOSED
    raw = frontend().GetTask(GetTaskRequest(task_id=left.id, session_id=other.id))
    assert raw.status.state == 4
    assert raw.status.completion_time >= raw.status.creation_time
    session.close()


def check_many_tasks():
    session = a_session()
    futures = [session.run(b"echo:%d" % number) for number in range(300)]
    assert [future.result(100) for future in futures] == [b"%d" % number for number in range(300)]
    assert flamepy.get_session(session.id).succeed == 300
    session.close()


def check_what_an_instance_is_told():
    session = a_session()
    told = eval(session.invoke(b"context"))
    assert told[:4] == ("1", session.id, session.id, service_application())
    assert session.invoke(b"environ:FLAME_ENDPOINT").startswith(b"http://127.0.0.1:")
    assert session.invoke(b"environ:FLAME_INSTANCE_ENDPOINT").endswith(b".sock")
    assert session.invoke(b"environ:RUST_LOG") == b"info"
    session.close()


def check_nodes():
    (node,) = flamepy.list_nodes()
    assert node.metadata.id == node.metadata.name == "node-1"
    assert node.status.state == 1
    assert (node.status.capacity.cpu, node.status.capacity.memory) == (2, 4 * 1024**3)
    assert node.status.allocatable == node.status.capacity
    assert node.status.info.os == "linux"


def check_an_application_that_can_not_start_tells_why():
    name = unique("broken")
    flamepy.register_application(name, {"command": "/nonexistent/program"})
    session = flamepy.create_session(name)
    future = session.run(b"x")
    error = raised(lambda: future.result(100))
    assert "/nonexistent/program" in error.message, error.message
    events = flamepy.get_session(session.id).events
    assert [event.code for event in events] == [1001] * 5 + [1002]
    first = events[0].message
    assert first.startswith("Executor <")
    assert "> on node <node-1> failed to bind session with return_code <11>: <" in first
    assert "Session retry limit reached after 5/5 failed attempts; " in events[-1].message
    session.close()


if __name__ == "__main__":
    main(globals())
