"""flmctl against a cluster that answers from a script: what is asked, what is printed, how it ends."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import click
import pytest
import yaml

from flame.cli.commands.node import COMMANDS as NODE
from flame.cli.commands.node import node
from flame.cli.commands.sandbox import COMMANDS as SANDBOX
from flame.cli.commands.sandbox import sandbox
from flame.cli.commands.sandbox_files import COMMANDS as FILES
from flame.cli.commands.sandbox_files import files
from flame.cli.commands.tenant import COMMANDS as TENANT
from flame.cli.commands.tenant import tenant
from flame.cli.flmctl import COMMANDS, flmctl
from flame.cli.program import Lazy
from flame.config.application import parse_applications
from flame.model.errors import FlameError, NotFoundError, UnavailableError
from flame.model.specs import ApplicationSpec
from flame.proto import frontend_pb2 as fe
from flame.proto import types_pb2 as ty
from flame.proto.values import application_spec_message
from scripted_cluster import GIB, START, Script, flame, scripted_cluster, session, task


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    return scripted_cluster(monkeypatch)


# --- list ------------------------------------------------------------------------------------------------------------


def test_list_of_sessions_is_the_table_of_the_issue(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script.answers["ListSession"] = ty.SessionList(
        sessions=[session("b", state=ty.SessionState.Closed), session("flmping-Sf4R2o", succeed=1)]
    )
    assert flame("list", "-s") == 0
    assert capsys.readouterr().out == (
        " ID              State   App  Slots  Priority  Pending  Running  Succeed  Failed  Created\n"
        " flmping-Sf4R2o  Open    pi   4      7         5        1        1        2       2026-02-02T02:40:00+00:00\n"
        " b               Closed  pi   4      7         5        1        30000    2       2026-02-02T02:40:00+00:00\n"
    )
    assert script.closed


def test_wide_adds_columns(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script.answers["ListSession"] = ty.SessionList(sessions=[session()])
    assert flame("list", "-s", "-o", "wide") == 0
    header, row = capsys.readouterr().out.splitlines()
    added = ["Cancelled", "Resources", "Age", "Tenant", "Executors", "Wanted", "Waiting", "Reason"]
    assert header.split()[-8:] == added
    assert "cpu=2,mem=4Gi,gpu=0" in row


def test_the_output_option_may_stand_before_the_command(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script.answers["ListSession"] = ty.SessionList(sessions=[session("x"), session("y")])
    assert flame("-o", "name", "list", "-s") == 0
    assert capsys.readouterr().out == "x\ny\n"


def test_filters_and_pages_go_to_the_cluster(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    pages = {
        "": ty.SessionList(sessions=[session("x")], next_page_token="2"),
        "2": ty.SessionList(sessions=[session("y")]),
    }
    script.answers["ListSession"] = lambda body: pages[fe.ListSessionRequest.FromString(body).page_token]
    assert flame("list", "-s", "--state", "OPEN", "--app", "pi", "--label", "team=a=b", "-o", "name") == 0
    assert capsys.readouterr().out == "x\ny\n"
    first = fe.ListSessionRequest.FromString(script.asked[0][1])
    assert (list(first.states), first.application, dict(first.labels)) == (
        [ty.SessionState.Open],
        "pi",
        {"team": "a=b"},
    )


def test_list_of_tasks_says_when_there_are_more(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script.answers["ListTask"] = [task(i, ty.TaskState.Succeed) for i in range(1, 4)]
    assert flame("list", "-t", "pi-1", "--limit", "2", "-o", "name") == 0
    printed = capsys.readouterr()
    assert printed.out == "1\n2\n"
    assert "only the first 2 tasks" in printed.err
    request = script.request("ListTask", fe.ListTaskRequest)
    assert isinstance(request, fe.ListTaskRequest)
    assert (request.limit, request.without_payloads) == (3, True)


def test_list_of_nodes_and_executors(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    node = ty.Node(metadata=ty.Metadata(name="n1"), spec=ty.NodeSpec(hostname="host"))
    node.status.state = ty.NodeState.Ready
    node.status.capacity.CopyFrom(ty.ResourceRequirement(cpu=8, memory=15 * GIB + GIB // 2, gpu=2))
    node.status.info.CopyFrom(ty.NodeInfo(arch="x86_64", os="linux"))
    script.answers["ListNodes"] = ty.NodeList(nodes=[node])
    assert flame("list", "-n") == 0
    assert capsys.readouterr().out == (
        " NAME  HOSTNAME  STATUS  CPU  MEMORY  GPU  ARCH    OS     EXECUTORS\n"
        " n1    host      Ready   8    15.5Gi  2    x86_64  linux  0\n"
    )
    executor = ty.Executor(metadata=ty.Metadata(id="e1"), spec=ty.ExecutorSpec(node="n1"))
    executor.status.state = ty.ExecutorState.ExecutorIdle
    script.answers["ListExecutor"] = ty.ExecutorList(executors=[executor])
    assert flame("list", "-e", "--on-node", "n1") == 0
    assert capsys.readouterr().out == " ID  State  Session  Node\n e1  Idle   -        n1\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list"], "choose one of"),
        (["list", "-s", "-t", "x"], "choose one of"),
        (["list", "-s", "--state", "opn"], "unknown state 'opn'; the known ones are open, closed"),
        (["list", "-s", "--label", "x"], "invalid label 'x'; write KEY=VALUE"),
        (["view"], "choose one of"),
        (["view", "-t", "1"], "choose one of"),
        (["create"], "Missing option '-a'"),
        (["create", "-a", "pi", "-p", "-1"], "Invalid value for '-p'"),
        (["cancel", "-s", "x"], "choose one of"),
        (["cancel", "-s", "x", "-t", "1-"], "invalid task id '1-'"),
        (["cancel", "-s", "x", "-t", "5-1"], "invalid range of task ids '5-1'"),
        (["logs"], "choose one of"),
        (["list", "-o", "xml", "-s"], "Invalid value for '-o'"),
        (["clsoe", "-s", "x"], "no command 'clsoe'; did you mean 'close'?"),
        (["--timeout", "0", "list", "-s"], "Invalid value for '--timeout'"),
    ],
)
def test_wrong_usage_is_one_line_and_a_hint(
    script: Script, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert flame(*arguments) == 2
    printed = capsys.readouterr()
    error, hint = printed.err.splitlines()
    assert error.startswith(f"error: {message}")
    assert hint.startswith("hint: see flmctl")
    assert (printed.out, script.asked) == ("", [])


# --- view ------------------------------------------------------------------------------------------------------------


def test_view_of_a_session(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    found = session(pending_reason="no node has 2 free cores")
    found.status.events.add(code=1001, message="did not bind", creation_time=START + 1000)
    script.answers["GetSession"] = found
    assert flame("view", "-s", "pi-1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["Session:", "pi-1"]
    assert "Tasks:            5 pending, 1 running, 30000 succeed, 2 failed, 3 cancelled" in lines
    assert "Waiting:          no node has 2 free cores" in lines
    assert lines[-1] == "Events:           2026-02-02T02:40:01+00:00  did not bind (1001)"


def test_json_keeps_binary_data(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    found = session()
    found.spec.common_data = b"\xff\x00"
    script.answers["GetSession"] = found
    script.answers["ListTask"] = [task(1, ty.TaskState.Succeed, completion_time=START + 250)]
    assert flame("view", "-s", "pi-1", "-o", "json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["common_data"] == {"base64": "/wA="}
    assert document["creation_time"] == "2026-02-02T02:40:00.000Z"
    assert document["slots"] == 4
    (entry,) = document["tasks"]
    assert (entry["id"], entry["state"], entry["completion_time"]) == (1, "Succeed", "2026-02-02T02:40:00.250Z")
    assert entry["input"] == {"base64": "/wA="}
    assert entry["output"] == {"base64": "b2s=", "text": "ok"}


def test_view_of_a_task(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script.answers["GetTask"] = task(3, ty.TaskState.Failed)
    assert flame("view", "-s", "pi-1", "-t", "3") == 0
    out = capsys.readouterr().out
    assert "Input:            2 bytes (not text; -o json shows them)" in out
    assert "Output:           ok" in out


def test_an_application_can_be_viewed_and_registered_again(
    script: Script, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    spec = ty.ApplicationSpec(
        shim=ty.Shim.Host,
        command="/opt/pi",
        arguments=["-x", "1"],
        environments=[ty.Environment(name="A", value="1")],
        labels=["math"],
        max_instances=4,
        delay_release=0,
        schema=ty.ApplicationSchema(input='{"type": "integer"}'),
    )
    script.answers["GetApplication"] = ty.Application(
        metadata=ty.Metadata(name="pi"), spec=spec, status=ty.ApplicationStatus(creation_time=START)
    )
    assert flame("view", "-a", "pi", "-o", "yaml") == 0
    file = tmp_path / "pi.yaml"
    file.write_text(capsys.readouterr().out)
    assert yaml.safe_load(file.read_text())["spec"]["command"] == "/opt/pi"
    script.answers["RegisterApplication"] = ty.Result()
    assert flame("register", "-f", str(file)) == 0
    assert capsys.readouterr().out == "Application <pi> was registered.\n"
    assert script.request("RegisterApplication", fe.RegisterApplicationRequest) == fe.RegisterApplicationRequest(
        name="pi", application=spec
    )
    assert flame("view", "-a", "pi") == 0
    page = capsys.readouterr().out
    assert "Schema:          input: integer" in page
    assert "Warm Instances:  0 on each node" in page


def test_an_application_is_sent_with_its_warm_instances() -> None:
    assert application_spec_message(ApplicationSpec(warm_instances=2)).warm_instances == 2


def test_what_keeps_an_application_apart_comes_back_as_it_was(
    script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = ty.Limits(memory=1 << 20, pids=9, cpu_millis=500, disk=1 << 19, wall_ms=1500, output=7)
    readable = ["datasets/shared", "models/*"]
    spec = ty.ApplicationSpec(
        command="x", isolation="process", network="none", limits=limits, readable_objects=readable
    )
    script.answers["GetApplication"] = ty.Application(metadata=ty.Metadata(id="pi", name="pi"), spec=spec)
    assert flame("view", "-a", "pi", "-o", "yaml") == 0
    [document] = parse_applications(tmp_path, capsys.readouterr().out)
    sent = application_spec_message(document.spec)
    assert (sent.isolation, sent.network, sent.limits) == ("process", "none", limits)
    assert list(sent.readable_objects) == readable
    assert flame("view", "-a", "pi") == 0
    page = capsys.readouterr().out
    assert "Isolation:       process" in page
    assert "memory=1Mi, pids=9, cpu=0.5, disk=512Ki, wall=1.5, output=7" in page
    assert "Reads Objects:   datasets/shared, models/*" in page


def test_create_may_ask_for_more_isolation(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script.answers["CreateSession"] = session("mine")
    assert flame("create", "-a", "pi", "--isolation", "process", "--network", "host") == 0
    request = script.request("CreateSession", fe.CreateSessionRequest)
    assert isinstance(request, fe.CreateSessionRequest)
    assert (request.session.isolation, request.session.network) == ("process", "host")


def test_create_may_name_what_instances_read(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script.answers["CreateSession"] = session("mine")
    assert flame("create", "-a", "pi", "--readable-objects", "data/shared", "--readable-objects", "models/*") == 0
    request = fe.CreateSessionRequest.FromString(script.asked[-1][1])
    assert list(request.session.readable_objects) == ["data/shared", "models/*"]


def test_view_shows_what_a_session_asks_for(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    found = session("s")
    found.spec.isolation = "gvisor"
    found.spec.readable_objects.append("data/shared")
    found.spec.limits.CopyFrom(ty.Limits(memory=256 << 20, pids=9, cpu_millis=500, wall_ms=2500))
    script.answers["GetSession"] = found
    assert flame("view", "-s", "s") == 0
    page = capsys.readouterr().out
    assert re.search(r"^Isolation: +gvisor$", page, re.MULTILINE)
    assert re.search(r"^Reads Objects: +data/shared$", page, re.MULTILINE)
    assert re.search(r"^Limits: +memory=256Mi, pids=9, cpu=0.5, wall=2.5$", page, re.MULTILINE)


def test_create_may_ask_for_limits(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script.answers["CreateSession"] = session()
    assert flame("create", "-a", "pi", "--limit", "memory=256Mi,cpu=0.5", "--limit", "wall=2.5") == 0
    request = fe.CreateSessionRequest.FromString(script.asked[-1][1])
    assert request.session.limits == ty.Limits(memory=256 << 20, cpu_millis=500, wall_ms=2500)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("memory", "invalid limit 'memory'\nhint: write NAME=VALUE, such as memory=256Mi"),
        ("disks=1", "unknown limit 'disks'\nhint: the known ones are memory, pids, cpu, disk, wall, output"),
        ("pids=1.5", "invalid limit pids=1.5\nhint: write a whole number"),
        ("cpu=nan", "invalid limit cpu=nan\nhint: write a number"),
        ("wall=99999999", "invalid limit wall=99999999"),
        ("memory=much", "invalid size 'much'"),
        ("memory=0", "limit memory is 0: nothing would start"),
        ("pids=5,pids=6", "limit pids stands twice"),
    ],
)
def test_limits_that_mean_nothing_are_refused(
    script: Script, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    assert flame("create", "-a", "pi", "--limit", text) == 2
    assert words in capsys.readouterr().err
    assert not script.asked


# --- changes -------------------------------------------------------------------------------------------------------


def test_create_sends_what_was_asked_for(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script.answers["CreateSession"] = session("mine")
    limits = ["-p", "3", "-r", "cpu=2,mem=4g", "--max-instances", "5"]
    assert flame("create", "-a", "pi", "--id", "mine", "--common-data", "hi", "--label", "a=b", *limits) == 0
    assert capsys.readouterr().out == "Session <mine> was created.\n"
    request = script.request("CreateSession", fe.CreateSessionRequest)
    assert isinstance(request, fe.CreateSessionRequest)
    assert request.session_id == "mine"
    assert request.session == ty.SessionSpec(
        application="pi",
        priority=3,
        resreq=ty.ResourceRequirement(cpu=2, memory=4 * GIB),
        max_instances=5,
        batch_size=1,
        common_data=b"hi",
        labels={"a": "b"},
    )


def test_create_makes_an_id_and_leaves_the_rest_to_the_cluster(script: Script) -> None:
    script.answers["CreateSession"] = session()
    assert flame("create", "-a", "pi") == 0
    request = script.request("CreateSession", fe.CreateSessionRequest)
    assert isinstance(request, fe.CreateSessionRequest)
    assert len(request.session_id) == len("pi-123456")
    assert not request.session.HasField("resreq")
    assert not request.session.HasField("max_instances")
    assert not request.session.HasField("common_data")


def test_a_bad_resource_request_is_refused_before_anything_is_sent(
    script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    assert flame("create", "-a", "pi", "-r", "cpu=two") == 2
    assert capsys.readouterr().err.startswith("error: invalid number 'two' for cpu")
    assert script.asked == []


def test_close_by_force(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script.answers["CloseSession"] = session("x", state=ty.SessionState.Closed)
    assert flame("close", "-s", "x", "--force", "-o", "json") == 0
    assert json.loads(capsys.readouterr().out)["state"] == "Closed"
    assert script.request("CloseSession", fe.CloseSessionRequest) == fe.CloseSessionRequest(session_id="x", force=True)


def test_a_file_with_a_mistake_registers_nothing(
    script: Script, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "apps.yaml"
    file.write_text("metadata: {name: a}\n---\nmetadata: {nme: b}\n")
    assert flame("register", "-f", str(file)) == 2
    assert "apps.yaml:3: metadata: name is required" in capsys.readouterr().err
    assert script.asked == []


def test_a_refusal_inside_a_result_is_an_error(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script.answers["UnregisterApplication"] = ty.Result(return_code=-1, message="3 open sessions in the application")
    assert flame("unregister", "-a", "pi") == 2
    assert capsys.readouterr().err == "error: 3 open sessions in the application\n"


def test_cancel_of_ranges(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script.answers["CancelTask"] = fe.CancelTaskResponse(task_ids=[4, 2])
    assert flame("cancel", "-s", "x", "-t", "1-3,4", "-t", "2", "--reason", "wrong input") == 0
    assert capsys.readouterr().out == "2 of 4 tasks were cancelled.\n"
    assert script.request("CancelTask", fe.CancelTaskRequest) == fe.CancelTaskRequest(
        session_id="x", task_ids=[1, 2, 3, 4], reason="wrong input"
    )


def test_cancel_of_everything_asks_for_the_unfinished(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script.answers["ListTask"] = [task(2, ty.TaskState.Pending), task(9, ty.TaskState.Running)]
    script.answers["CancelTask"] = fe.CancelTaskResponse(task_ids=[2, 9])
    assert flame("cancel", "-s", "x", "--all", "-o", "name") == 0
    assert capsys.readouterr().out == "2\n9\n"


# --- what happens --------------------------------------------------------------------------------------------------


def test_logs_name_their_source_when_it_changes(script: Script, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    script.answers["GetLogs"] = [
        fe.LogChunk(executor_id="e1", stream="stdout", data=b"one\n"),
        fe.LogChunk(executor_id="e1", stream="stdout", data=b"two \xff"),
        fe.LogChunk(executor_id="e2", stream="stderr", data=b"three\n", truncated=True),
    ]
    assert flame("logs", "-s", "x", "-f", "--tail", "4k") == 0
    assert capsysbinary.readouterr().out == (
        b"==> e1 stdout <==\none\ntwo \xff\n==> e2 stderr (its start was dropped) <==\nthree\n"
    )
    assert script.request("GetLogs", fe.GetLogsRequest) == fe.GetLogsRequest(
        session_id="x", follow=True, tail_bytes=4096
    )


def test_watch_of_a_task_ends_with_its_fate(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    ended = task(1, ty.TaskState.Failed)
    ended.status.events.add(code=3, message="division by zero", creation_time=START)
    states = iter((task(1, ty.TaskState.Pending), ended))
    script.answers["GetTask"] = lambda _: next(states)
    script.answers["WatchTask"] = [task(1, ty.TaskState.Running), task(1, ty.TaskState.Failed)]
    assert flame("watch", "-s", "pi-1", "-t", "1") == 1
    running, failed = capsys.readouterr().out.splitlines()
    assert running.endswith("  Running (attempt 1)")
    assert failed.endswith("  Failed: division by zero")


def test_watch_of_a_session_prints_each_change_once(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script.answers["WatchSession"] = [
        fe.SessionUpdate(session=session()),
        fe.SessionUpdate(session=session()),
        fe.SessionUpdate(session=session(state=ty.SessionState.Closed, pending=0)),
    ]
    assert flame("watch", "-s", "pi-1") == 0
    first, second = capsys.readouterr().out.splitlines()
    assert "Open     5 pending" in first
    assert "Closed   0 pending" in second


def test_top_measures_between_two_pictures(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script.answers["ListNodes"] = ty.NodeList()
    script.answers["ListExecutor"] = ty.ExecutorList()
    counts = iter((100, 400))
    script.answers["ListSession"] = lambda _: ty.SessionList(sessions=[session(succeed=next(counts))])
    assert flame("top", "--count", "2", "-i", "0.1") == 0
    out = capsys.readouterr().out
    assert "measuring" in out
    assert "tasks/s" in out.split("measuring", 1)[1]
    assert script.closed


def test_top_for_programs_is_a_line_per_picture(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script.answers["ListNodes"] = ty.NodeList()
    script.answers["ListExecutor"] = ty.ExecutorList()
    counts = iter((100, 400))
    script.answers["ListSession"] = lambda _: ty.SessionList(
        sessions=[session(succeed=next(counts)), session("closed", state=ty.SessionState.Closed)]
    )
    assert flame("top", "--count", "2", "-i", "0.1", "-o", "json") == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["tasks_per_second"], first["nodes"]) == (None, [])
    assert [entry["id"] for entry in second["sessions"]] == ["pi-1"]
    assert second["sessions"][0]["tasks_per_second"] == second["tasks_per_second"] > 0


# --- errors and the program ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "printed"),
    [
        (NotFoundError("session <<x>> not found"), 4, "error: session <<x>> not found\n"),
        (
            UnavailableError("can't connect", remedy="start one\nwith flmadm up"),
            7,
            "error: can't connect\nhint: start one\n  with flmadm up\n",
        ),
    ],
)
def test_errors_of_the_cluster_give_exit_codes(
    script: Script, capsys: pytest.CaptureFixture[str], error: FlameError, code: int, printed: str
) -> None:
    script.answers["GetSession"] = error
    assert flame("view", "-s", "x") == code
    assert capsys.readouterr().err == printed
    assert script.closed


@pytest.mark.parametrize(
    ("group", "commands"), [(flmctl, COMMANDS), (tenant, TENANT), (node, NODE), (sandbox, SANDBOX), (files, FILES)]
)
def test_the_summaries_are_those_of_the_commands(group: click.Group, commands: Mapping[str, Lazy]) -> None:
    for name, entry in commands.items():
        command = group.get_command(click.Context(group), name)
        assert command is not None
        assert (command.help or "").startswith(entry.summary.rstrip(".")), name


@pytest.mark.parametrize("group", ["tenant", "node", "sandbox"])
def test_a_group_without_a_command_prints_its_help(capsys: pytest.CaptureFixture[str], group: str) -> None:
    assert flame(group) == 0
    assert "Commands:" in capsys.readouterr().out


def test_without_a_command_the_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert flame() == 0
    assert "Commands:" in capsys.readouterr().out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_needs_no_cluster(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    assert flame("completion", shell) == 0
    assert "_FLMCTL_COMPLETE" in capsys.readouterr().out
