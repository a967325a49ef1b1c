"""flmctl's commands about who gets what and where: tenants, nodes, gangs, explanations."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable

import pytest
import yaml

from flame.model.errors import NotFoundError, UnavailableError
from flame.proto import frontend_pb2 as fe
from flame.proto import types_pb2 as ty
from scripted_cluster import GIB, START, Script, flame, scripted_cluster, session


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    return scripted_cluster(monkeypatch)


def tenant(name: str, parent: str = "", **status: object) -> ty.Tenant:
    made = ty.Tenant(metadata=ty.Metadata(name=name), spec=ty.TenantSpec(parent=parent, weight=2))
    made.status.creation_time = START
    for field, value in status.items():
        setattr(made.status, field, value)
    return made


def node(name: str = "n1", **status: object) -> ty.Node:
    made = ty.Node(metadata=ty.Metadata(name=name), spec=ty.NodeSpec(hostname=f"{name}.example"))
    made.status.state = ty.NodeState.Ready
    made.status.capacity.CopyFrom(ty.ResourceRequirement(cpu=8, memory=16 * GIB))
    for field, value in status.items():
        setattr(made.status, field, value)
    return made


def in_turn(*answers: ty.Node | Exception) -> Callable[[bytes], fe.GetNodeResponse]:
    """One answer after the other; the last one again and again."""
    left = list(answers)

    def answer(_: bytes) -> fe.GetNodeResponse:
        now = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(now, Exception):
            raise now
        return fe.GetNodeResponse(node=now)

    return answer


# --- tenants ---------------------------------------------------------------------------------------------------------


def test_create_of_a_tenant_sends_its_whole_spec(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script.answers["CreateTenant"] = tenant("vision")
    limits = ["--guarantee", "cpu=4,mem=8g", "--quota", "cpu=16,mem=64g,gpu=2,sessions=10,pending=100000"]
    about = ["--parent", "research", "--weight", "2.5", "--description", "models that see"]
    assert flame("tenant", "create", "vision", *about, *limits) == 0
    assert capsys.readouterr().out == "Tenant <vision> was created.\n"
    assert script.request("CreateTenant", fe.CreateTenantRequest) == fe.CreateTenantRequest(
        name="vision",
        tenant=ty.TenantSpec(
            parent="research",
            weight=2.5,
            guarantee=ty.ResourceRequirement(cpu=4, memory=8 * GIB),
            quota=ty.TenantQuota(cpu=16, memory=64 * GIB, gpu=2, sessions=10, pending=100000),
            description="models that see",
        ),
    )


def test_a_tenant_without_options_has_weight_one_and_no_limits(script: Script) -> None:
    script.answers["CreateTenant"] = tenant("a")
    assert flame("tenant", "create", "a") == 0
    request = script.request("CreateTenant", fe.CreateTenantRequest)
    assert isinstance(request, fe.CreateTenantRequest)
    assert request.tenant.weight == 1
    assert not any(request.tenant.quota.HasField(name) for name in ("cpu", "memory", "gpu", "sessions", "pending"))


def test_update_changes_only_what_is_named(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    found = tenant("a", parent="top")
    found.spec.description = "kept"
    found.spec.guarantee.CopyFrom(ty.ResourceRequirement(cpu=4, memory=GIB))
    found.spec.quota.CopyFrom(ty.TenantQuota(cpu=16, memory=GIB, sessions=3))
    script.answers["GetTenant"] = found
    script.answers["UpdateTenant"] = found
    assert flame("tenant", "update", "a", "--quota", "cpu=none,gpu=0", "--guarantee", "cpu=2", "-o", "name") == 0
    assert capsys.readouterr().out == "a\n"
    assert script.request("UpdateTenant", fe.UpdateTenantRequest) == fe.UpdateTenantRequest(
        name="a",
        tenant=ty.TenantSpec(
            parent="top",
            weight=2,
            description="kept",
            guarantee=ty.ResourceRequirement(cpu=2, memory=GIB),
            quota=ty.TenantQuota(memory=GIB, sessions=3, gpu=0),
        ),
    )


def test_none_takes_all_limits_away_and_an_empty_parent_leads_to_the_top(script: Script) -> None:
    found = tenant("a", parent="top")
    found.spec.guarantee.CopyFrom(ty.ResourceRequirement(cpu=4, memory=GIB))
    found.spec.quota.CopyFrom(ty.TenantQuota(cpu=16, pending=5))
    script.answers["GetTenant"] = found
    script.answers["UpdateTenant"] = found
    assert flame("tenant", "update", "a", "--quota", "none,sessions=7", "--guarantee", "NONE", "--parent", "") == 0
    request = script.request("UpdateTenant", fe.UpdateTenantRequest)
    assert isinstance(request, fe.UpdateTenantRequest)
    assert request.tenant.quota == ty.TenantQuota(sessions=7)
    assert request.tenant.guarantee == ty.ResourceRequirement()
    assert request.tenant.parent == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["update", "a"], "nothing to change: name one of the options"),
        (["update", "a", "--quota", "cpus=4"], "unknown quota 'cpus'; did you mean 'cpu'?"),
        (
            ["create", "a", "--guarantee", "sessions=4"],
            "unknown guarantee 'sessions'; the known ones are cpu, gpu, mem",
        ),
        (["create", "a", "--quota", "cpu"], "invalid quota 'cpu'"),
        (["create", "a", "--quota", ""], "invalid quota ''"),
        (["create", "a", "--quota", "cpu=1,cpu=2"], "quota 'cpu' stands twice"),
        (["create", "a", "--quota", "cpu=-1"], "invalid number '-1' for cpu of the quota"),
        (["create", "a", "--quota", "gpu=2147483648"], "invalid number '2147483648' for gpu of the quota"),
        (["create", "a", "--quota", f"cpu={2**63}"], f"invalid number '{2**63}' for cpu of the quota"),
        (["create", "a", "--quota", "mem=lots"], "invalid size 'lots'"),
        (["create", "a", "--weight", "0"], "Invalid value for '--weight': 0 is not a number over 0"),
        (["create", "a", "--weight", "nan"], "Invalid value for '--weight': nan is not a number over 0"),
        (["create", "a", "--weight", "inf"], "Invalid value for '--weight': inf is not a number over 0"),
        (["create"], "Missing argument 'NAME'"),
        (["creat", "a"], "no command 'creat'; did you mean 'create'?"),
    ],
)
def test_wrong_tenants_are_refused_before_anything_is_sent(
    script: Script, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert flame("tenant", *arguments) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert script.asked == []


def test_tenants_are_listed_as_a_tree(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script.answers["ListTenants"] = ty.TenantList(tenants=_tree())
    assert flame("tenant", "list") == 0
    assert capsys.readouterr().out == (
        " Name       Weight  Share  Fair share  Used         Sessions  Pending  Executors  Wanted\n"
        " default    2       0.0%   0.0%        0 cpu, 0B    0         0        0          0\n"
        " left-over  2       0.0%   0.0%        0 cpu, 0B    0         0        0          0\n"
        " research   2       50.0%  66.7%       8 cpu, 16Gi  3         1000     8          4\n"
        "   audio    2       0.0%   0.0%        0 cpu, 0B    0         0        0          0\n"
        "   vision   2       0.0%   0.0%        0 cpu, 0B    0         7        0          3\n"
    )
    assert flame("list", "--tenants", "-o", "name") == 0
    assert capsys.readouterr().out.split() == ["default", "left-over", "research", "audio", "vision"]
    assert flame("list", "-T", "-o", "wide") == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split()[-4:] == ["Parent", "Guarantee", "Quota", "Description"]
    assert rows[3].split()[-4:] == ["research", "cpu=4,mem=8Gi", "cpu=16,mem=64Gi,sessions=0", "-"]


def _tree() -> list[ty.Tenant]:
    research = tenant("research", share=0.5, fair_share=2 / 3, sessions=3, pending=1000, executors=8, wanted=4)
    research.status.used.CopyFrom(ty.ResourceRequirement(cpu=8, memory=16 * GIB))
    audio = tenant("audio", "research")
    audio.spec.guarantee.CopyFrom(ty.ResourceRequirement(cpu=4, memory=8 * GIB))
    audio.spec.quota.CopyFrom(ty.TenantQuota(cpu=16, memory=64 * GIB, sessions=0))
    vision = tenant("vision", "research", pending=7, wanted=3)
    return [vision, research, tenant("default"), audio, tenant("left-over", "gone")]


def test_view_of_a_tenant(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    found = tenant("vision", "research", share=0.25, fair_share=1 / 3, sessions=1, pending=5, executors=2, wanted=3)
    found.spec.quota.CopyFrom(ty.TenantQuota(cpu=16))
    script.answers["GetTenant"] = found
    assert flame("tenant", "view", "vision") == 0
    page = capsys.readouterr().out
    assert page.splitlines() == [
        "Name:         vision",
        "Parent:       research",
        "Description:  -",
        "Weight:       2",
        "Guarantee:    -",
        "Quota:        cpu=16",
        "Used:         0 cpu, 0B",
        "Share:        25.0% of the cluster, fair is 33.3%",
        "Sessions:     1 open, 5 tasks pending",
        "Executors:    2 now, 3 more wanted",
        "Created:      2026-02-02T02:40:00+00:00",
    ]
    assert flame("view", "-T", "vision") == 0
    assert capsys.readouterr().out == page
    assert flame("tenant", "view", "vision", "-o", "json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["quota"] == {"cpu": 16, "memory": None, "gpu": None, "sessions": None, "pending": None}
    assert (document["parent"], document["weight"], document["share"]) == ("research", 2.0, 0.25)


def test_delete_of_a_tenant_and_of_one_that_is_not_there(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script.answers["DeleteTenant"] = tenant("a")
    assert flame("tenant", "delete", "a") == 0
    assert capsys.readouterr().out == "Tenant <a> was deleted.\n"
    script.answers["DeleteTenant"] = NotFoundError("tenant <b> not found")
    assert flame("tenant", "delete", "b") == 4
    assert capsys.readouterr().err == "error: tenant <b> not found\n"


def test_sessions_of_a_tenant(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    ours, theirs = session("x"), session("y")
    ours.spec.tenant = "vision"
    script.answers["ListSession"] = ty.SessionList(sessions=[ours, theirs])
    assert flame("list", "-s", "--of-tenant", "vision", "-o", "name") == 0
    assert flame("list", "-s", "--of-tenant", "default", "-o", "name") == 0
    assert capsys.readouterr().out == "x\ny\n"


def test_top_shows_tenants_where_there_is_more_than_one(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script.answers["ListNodes"] = ty.NodeList()
    script.answers["ListExecutor"] = ty.ExecutorList()
    script.answers["ListSession"] = ty.SessionList()
    assert flame("top", "--once") == 0
    assert "TENANT" not in capsys.readouterr().out
    script.answers["ListTenants"] = ty.TenantList(tenants=[tenant("default"), tenant("a", share=0.5, fair_share=0.25)])
    assert flame("top", "--once") == 0
    lines = capsys.readouterr().out.splitlines()
    (header,) = [line for line in lines if "TENANT" in line]
    assert header.split()[:5] == ["TENANT", "WEIGHT", "SHARE", "FAIR", "SHARE"]
    assert lines[lines.index(header) + 1].split()[:4] == ["a", "2", "50.0%", "25.0%"]


def test_top_cuts_its_lines_at_the_edge_of_a_terminal(
    script: Script, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script.answers["ListNodes"] = ty.NodeList(nodes=[node("a-node-with-a-very-long-name-that-does-not-fit-there")])
    script.answers["ListExecutor"] = ty.ExecutorList()
    script.answers["ListSession"] = ty.SessionList()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    assert flame("top", "--once") == 0
    lines = capsys.readouterr().out.removeprefix("\x1b[H\x1b[2J").splitlines()
    assert max(map(len, lines)) == 40
    assert "a-node-with-a-very-long-name-that-does-" in "".join(lines)


# --- nodes -----------------------------------------------------------------------------------------------------------


def test_marks_stand_beside_the_state_of_a_node(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    busy = node("n3", cordoned=True, draining=True, executors=2)
    busy.spec.max_executors = 4
    busy.spec.labels.update({"zone": "b", "disk": "ssd"})
    busy.spec.taints.append("gpu=a100")
    script.answers["ListNodes"] = ty.NodeList(
        nodes=[
            busy,
            node("n5", cordoned=True, draining=True, state=ty.NodeState.Unknown),
            node("n2", cordoned=True),
            node(),
            node("n4", cordoned=True, draining=True),
        ]
    )
    assert flame("node", "list") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [(row[0], row[2], row[-1]) for row in rows] == [
        ("n1", "Ready", "0"),
        ("n2", "Ready,cordoned", "0"),
        ("n3", "Ready,draining", "2/4"),
        ("n4", "Ready,drained", "0"),
        ("n5", "Unknown,draining", "0"),
    ]
    assert flame("node", "list", "-o", "wide") == 0
    assert capsys.readouterr().out.splitlines()[3].split()[-2:] == ["gpu=a100", "disk=ssd,zone=b"]


def test_view_of_a_node(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    found = node(cordoned=True, executors=2)
    found.spec.max_executors = 4
    found.spec.labels["zone"] = "b"
    found.spec.taints.append("dedicated")
    script.answers["GetNode"] = fe.GetNodeResponse(node=found)
    assert flame("node", "view", "n1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert {"Status:       Ready,cordoned", "Executors:    2, at most 4", "Labels:       zone=b"} <= set(lines)
    assert "Taints:       dedicated" in lines
    assert flame("node", "view", "n1", "-o", "json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["cordoned"], document["draining"], document["executors"]) == (True, False, 2)
    assert (document["labels"], document["taints"], document["max_executors"]) == ({"zone": "b"}, ["dedicated"], 4)


@pytest.mark.parametrize(
    ("mark", "printed"), [("cordon", "Node <n1> is cordoned.\n"), ("uncordon", "Node <n1> takes executors again.\n")]
)
def test_cordon_and_uncordon(script: Script, capsys: pytest.CaptureFixture[str], mark: str, printed: str) -> None:
    script.answers["MarkNode"] = node(cordoned=mark == "cordon")
    assert flame("node", mark, "n1") == 0
    assert capsys.readouterr().out == printed
    assert script.request("MarkNode", fe.MarkNodeRequest) == fe.MarkNodeRequest(name="n1", mark=mark)


def test_drain_waits_until_the_last_executor_is_gone(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script.answers["MarkNode"] = node(cordoned=True, draining=True, executors=2)
    script.answers["GetNode"] = in_turn(
        node(cordoned=True, draining=True, executors=1), node(cordoned=True, draining=True)
    )
    assert flame("node", "drain", "n1", "--grace", "2.5") == 0
    assert capsys.readouterr().out == "Node <n1> is drained.\n"
    request = fe.MarkNodeRequest(name="n1", mark="drain", grace_ms=2500)
    assert script.request("MarkNode", fe.MarkNodeRequest) == request
    assert [method for method, _ in script.asked].count("GetNode") == 2


def test_drain_goes_on_after_a_restart_of_the_session_manager(
    script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    generations = iter((1, 2))
    script.answers["GetCluster"] = lambda _: fe.ClusterInfo(generation=next(generations))
    script.answers["MarkNode"] = node(cordoned=True, draining=True, executors=2)
    script.answers["GetNode"] = in_turn(
        UnavailableError("the link is lost"),
        node(state=ty.NodeState.Unknown, cordoned=True, draining=True),
        node(cordoned=True, draining=True, executors=1),
        node(cordoned=True, draining=True),
    )
    assert flame("node", "drain", "n1", "-o", "json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["name"], document["draining"], document["executors"]) == ("n1", True, 0)
    # It looks for the cluster that it knew, and starts none.
    assert not script.settings.start


def test_a_node_that_is_lost_while_it_drains_is_drained(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script.answers["MarkNode"] = node(cordoned=True, draining=True, executors=2)
    script.answers["GetNode"] = in_turn(node(state=ty.NodeState.NotReady, cordoned=True, draining=True))
    assert flame("node", "drain", "n1") == 0
    assert capsys.readouterr().out == "Node <n1> is drained.\n"


def test_drain_gives_up_waiting(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script.answers["MarkNode"] = node(cordoned=True, draining=True, executors=2)
    script.answers["GetNode"] = in_turn(node(cordoned=True, draining=True, executors=1))
    assert flame("node", "drain", "n1", "--timeout", "0.01") == 7
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (
        "error: node n1 is not drained after 0.01 s: 1 executor left\n"
        "hint: it goes on draining; flmctl node view n1 shows it, flmctl node uncordon n1 ends it\n"
    )


def test_drain_that_somebody_ends_is_an_error(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script.answers["MarkNode"] = node(cordoned=True, draining=True, executors=2)
    script.answers["GetNode"] = in_turn(node(executors=2))
    assert flame("node", "drain", "n1") == 5
    assert "node n1 is no longer draining" in capsys.readouterr().err


def test_drain_without_waiting(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script.answers["MarkNode"] = node(cordoned=True, draining=True, executors=2)
    assert flame("node", "drain", "n1", "--no-wait") == 0
    assert capsys.readouterr().out == "Node <n1> is draining; 2 executors left.\n"
    assert [method for method, _ in script.asked] == ["MarkNode"]
    # How long tasks may go on is the cluster's own setting then.
    assert script.request("MarkNode", fe.MarkNodeRequest) == fe.MarkNodeRequest(name="n1", mark="drain")


# --- sessions and executors --------------------------------------------------------------------------------------


def test_create_of_a_gang_with_wishes(script: Script) -> None:
    script.answers["CreateSession"] = session("mine")
    where = ["--selector", "zone=a", "--selector", "disk=ssd", "--toleration", "gpu", "--toleration", "x=y"]
    wishes = ["--prefer-node", "n1", "--prefer-node", "n2", "--max-running-per-key", "3"]
    gang = ["--gang", "--min-instances", "4", "--topology", "same:rack", "--on-member-loss", "fail"]
    assert flame("create", "-a", "pi", "--id", "mine", "--tenant", "vision", *gang, *where, *wishes) == 0
    request = script.request("CreateSession", fe.CreateSessionRequest)
    assert isinstance(request, fe.CreateSessionRequest)
    assert request.session == ty.SessionSpec(
        application="pi",
        batch_size=1,
        tenant="vision",
        min_instances=4,
        gang=True,
        topology="same:rack",
        on_member_loss="fail",
        selector={"zone": "a", "disk": "ssd"},
        tolerations=["gpu", "x=y"],
        prefer_nodes=["n1", "n2"],
        max_running_per_key=3,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--selector", "zone"], "invalid selector 'zone'; write KEY=VALUE"),
        (["--toleration", "=x"], "invalid toleration '=x'; write KEY or KEY=VALUE"),
        (["--on-member-loss", "weep"], "Invalid value for '--on-member-loss'"),
        (["--max-running-per-key", "0"], "Invalid value for '--max-running-per-key'"),
    ],
)
def test_wrong_wishes_are_refused_before_anything_is_sent(
    script: Script, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert flame("create", "-a", "pi", *arguments) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert script.asked == []


def test_view_of_a_session_that_waits(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    found = session(pending_reason="no node has 2 free cores", pending_since=START + 60_000, wanted=4, executors=1)
    found.spec.MergeFrom(
        ty.SessionSpec(
            tenant="vision",
            min_instances=4,
            gang=True,
            topology="same-node",
            selector={"zone": "a"},
            tolerations=["gpu=a100", "slow"],
            prefer_nodes=["n1"],
        )
    )
    script.answers["GetSession"] = found
    assert flame("view", "-s", "pi-1") == 0
    lines = capsys.readouterr().out.splitlines()
    for line in (
        "Instances:        1 now, 4 wanted, 4 to unlimited",
        "Tenant:           vision",
        "Gang:             4 together, same-node; starts again when it loses one",
        "Selector:         zone=a",
        "Tolerations:      gpu=a100, slow",
        "Prefers Nodes:    n1",
        "Waiting:          no node has 2 free cores",
    ):
        assert line in lines
    assert any(line.startswith("Waiting Since:    2026-02-02T02:41:00+00:00 (") for line in lines)
    script.answers["ListTask"] = []
    assert flame("view", "-s", "pi-1", "-o", "json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["gang"], document["topology"], document["selector"]) == (True, "same-node", {"zone": "a"})
    assert (document["tenant"], document["wanted"]) == ("vision", 4)
    assert document["pending_since"] == "2026-02-02T02:41:00.000Z"


def test_wide_lists_say_who_waits_and_who_holds_what(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    since = int(time.time() * 1000) - 2 * 86_400_000 - 3_600_000
    waits = session(pending_reason="no room", pending_since=since, wanted=4, executors=1)
    waits.spec.tenant = "vision"
    script.answers["ListSession"] = ty.SessionList(sessions=[waits])
    assert flame("list", "-s", "-o", "wide") == 0
    assert capsys.readouterr().out.splitlines()[1].endswith("  vision  1          4       2d01h    no room")
    member = ty.Executor(metadata=ty.Metadata(id="e1"), spec=ty.ExecutorSpec(node="n1"))
    member.status.gpus.extend((0, 3))
    member.status.gang.CopyFrom(ty.Gang(rank=1, world_size=2, addresses=["a:1", "b:2"]))
    script.answers["ListExecutor"] = ty.ExecutorList(executors=[member])
    assert flame("list", "-e", "-o", "wide") == 0
    header, row = capsys.readouterr().out.splitlines()
    assert (header.split()[-2:], row.split()[-2:]) == (["GPUs", "Gang"], ["0,3", "1/2"])
    script.answers["GetExecutor"] = member
    assert flame("view", "-e", "e1") == 0
    page = capsys.readouterr().out
    assert "Gang:       rank 1 of 2\n            rank 0 at a:1\n            rank 1 at b:2\n" in page
    assert flame("view", "-e", "e1", "-o", "json") == 0
    gang = {"rank": 1, "world_size": 2, "addresses": ["a:1", "b:2"]}
    document = json.loads(capsys.readouterr().out)
    assert (document["gpus"], document["gang"]) == ([0, 3], gang)


# --- explain ---------------------------------------------------------------------------------------------------------


def explanation() -> fe.Explanation:
    return fe.Explanation(
        summary="session pi-1 is Open; needs 2 GPUs",
        reasons=[
            fe.Reason(
                rule="capacity", object="cluster", message="needs 2 GPUs", remedy="ask for less", since=START + 1000
            ),
            fe.Reason(rule="node", object="n1", message="0 of 1 GPU free"),
            fe.Reason(rule="node", object="n2", message="it is cordoned"),
        ],
        story=[ty.Event(code=0, message="created", creation_time=START)],
    )


def test_explain_says_rule_node_since_when_and_what_helps(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script.answers["Explain"] = explanation()
    assert flame("explain", "session", "pi-1") == 0
    out = re.sub(r"\(\d+d\d\dh\)", "(SPAN)", capsys.readouterr().out)
    assert out == (
        "session pi-1 is Open; needs 2 GPUs\n\n"
        "Why:\n"
        "  needs 2 GPUs\n"
        "    rule:        capacity, of cluster\n"
        "    since:       2026-02-02T02:40:01+00:00 (SPAN)\n"
        "    what helps:  ask for less\n\n"
        "On the nodes:\n"
        "  Node  Why not\n"
        "  n1    0 of 1 GPU free\n"
        "  n2    it is cordoned\n\n"
        "What happened:\n"
        "  2026-02-02T02:40:00+00:00  created (0)\n"
    )


def test_what_all_nodes_share_is_said_once_and_the_story_ends_with_the_last_events(
    script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = explanation()
    for reason in answer.reasons:
        reason.since, reason.remedy = START, "add a node"
    answer.story.extend(ty.Event(code=0, message=f"step {n}", creation_time=START) for n in range(25))
    script.answers["Explain"] = answer
    assert flame("explain", "session", "pi-1") == 0
    nodes, story = capsys.readouterr().out.partition("On the nodes:\n")[2].split("\n\n")
    assert nodes.splitlines() == [
        "  Node  Why not",
        "  n1    0 of 1 GPU free",
        "  n2    it is cordoned",
        "  what helps: add a node",
    ]
    lines = story.splitlines()
    assert lines[:2] == ["What happened:", "  ... 6 earlier events; -o json shows them"]
    assert (len(lines), lines[2].split()[1:3], lines[-1].split()[1:3]) == (22, ["step", "5"], ["step", "24"])


def test_what_differs_between_nodes_has_its_column(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    answer = explanation()
    answer.reasons[1].remedy = "wait"
    answer.reasons[2].since = int(time.time() * 1000) - 120_500
    script.answers["Explain"] = answer
    assert flame("explain", "session", "pi-1") == 0
    table = capsys.readouterr().out.partition("On the nodes:\n")[2].splitlines()[:3]
    assert table == [
        "  Node  Why not          Since  What helps",
        "  n1    0 of 1 GPU free  -      wait",
        "  n2    it is cordoned   2m00s  -",
    ]


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (["session", "pi-1"], ("pi-1", "")),
        (["-s", "pi-1"], ("pi-1", "")),
        (["-s", "pi-1", "-t", "7"], ("pi-1", "7")),
        (["task", "pi-1", "7"], ("pi-1", "7")),
        (["task", "pi-1/7"], ("pi-1", "7")),
        (["task", "a/b/7"], ("a/b", "7")),
        (["task", "7", "-s", "pi-1"], ("pi-1", "7")),
    ],
)
def test_the_forms_of_explain(script: Script, arguments: list[str], asked: tuple[str, str]) -> None:
    script.answers["Explain"] = explanation()
    assert flame("explain", *arguments) == 0
    session_id, task_id = asked
    assert script.request("Explain", fe.ExplainRequest) == fe.ExplainRequest(session_id=session_id, task_id=task_id)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sesion", "x"], "can't explain 'sesion'; did you mean 'session'?"),
        (["session"], "write one of session ID, task SESSION ID and task SESSION/ID"),
        (["session", "x", "-s", "y"], "write one of"),
        (["session", "x", "y"], "write one of"),
        (["task", "7"], "write one of"),
        (["task", "x/7", "-s", "y", "-t", "1"], "write one of"),
        (["-t", "7"], "-t needs the session as well"),
    ],
)
def test_wrong_forms_of_explain(
    script: Script, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert flame("explain", *arguments) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert script.asked == []


def waiting_cluster(script: Script) -> None:
    now = int(time.time() * 1000)
    young = session("young", pending_reason="no room", pending_since=now - 5_000, wanted=2)
    old = session("old", pending_reason="quota", pending_since=now - 3_600_000, wanted=9, executors=1)
    old.spec.tenant = "vision"
    script.answers["ListSession"] = ty.SessionList(sessions=[young, session("fine"), old])
    script.answers["ListNodes"] = ty.NodeList(nodes=[node("n1"), node("n2", cordoned=True)])
    script.answers["Explain"] = explanation()


def test_explain_of_the_cluster(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    waiting_cluster(script)
    assert flame("explain") == 0
    assert capsys.readouterr().out == (
        "2 of 3 open sessions wait for executors\n\n"
        " Session  Tenant  Executors  Waiting  Why\n"
        " old      vision  1/9        1h00m    quota\n"
        " young    -       0/2        5s       no room\n\n"
        "Nodes that take no executors:\n"
        "  n2  Ready,cordoned\n\n"
        "flmctl explain session ID says more.\n"
    )
    listed = script.request("ListSession", fe.ListSessionRequest)
    assert isinstance(listed, fe.ListSessionRequest)
    assert list(listed.states) == [ty.SessionState.Open]


def test_a_session_that_wants_executors_in_advance_waits_as_well(
    script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    script.answers["ListSession"] = ty.SessionList(sessions=[session("ahead", wanted=2)])
    script.answers["ListNodes"] = ty.NodeList()
    script.answers["Explain"] = explanation()
    assert flame("explain") == 0
    summary, _, _, row, *_ = capsys.readouterr().out.splitlines()
    assert summary == "1 of 1 open session waits for executors"
    assert row == " ahead    -       0/2        -        needs 2 GPUs"


def test_nothing_waits(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script.answers["GetCluster"] = fe.ClusterInfo(read_only=True, read_only_reason="disk full")
    script.answers["ListSession"] = ty.SessionList(sessions=[session("fine")])
    script.answers["ListNodes"] = ty.NodeList(nodes=[node()])
    assert flame("explain") == 0
    assert capsys.readouterr().out == "none of 1 open session waits for executors\nREAD ONLY: disk full\n"


@pytest.mark.parametrize(("output", "load"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_the_document_of_the_cluster_says_all(
    script: Script, capsys: pytest.CaptureFixture[str], output: str, load: Callable[[str], dict[str, object]]
) -> None:
    waiting_cluster(script)
    script.answers["GetCluster"] = fe.ClusterInfo(read_only=True, read_only_reason="disk full", policies=["drf"])
    assert flame("explain", "-o", output) == 0
    document = load(capsys.readouterr().out)
    assert (document["read_only"], document["policies"]) == ("disk full", ["drf"])
    sessions, nodes = document["sessions"], document["nodes"]
    assert isinstance(sessions, list)
    assert isinstance(nodes, list)
    assert [(entry["id"], entry["wanted"], len(entry["reasons"])) for entry in sessions] == [
        ("old", 9, 3),
        ("young", 2, 3),
    ]
    assert sessions[0]["reasons"][0] == {
        "rule": "capacity",
        "object": "cluster",
        "message": "needs 2 GPUs",
        "remedy": "ask for less",
        "since": "2026-02-02T02:40:01.000Z",
    }
    assert [entry["name"] for entry in nodes] == ["n2"]


# --- completion ------------------------------------------------------------------------------------------------------


def complete(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """What the shell offers in place of the last word."""
    monkeypatch.setenv("_FLMCTL_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", " ".join(("flmctl", *words)))
    monkeypatch.setenv("COMP_CWORD", str(len(words)))
    with pytest.raises(SystemExit) as ended:
        flame()
    assert ended.value.code == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return [line.partition(",")[2] for line in printed.out.splitlines() if line]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("te",), ["tenant"]),
        (("tenant", "v"), ["view"]),
        (("tenant", "view", "vi"), ["vision"]),
        (("tenant", "create", "x", "--parent", ""), ["default", "vision"]),
        (("node", "drain", ""), ["n1", "n2"]),
        (("list", "-e", "--on-node", "n"), ["n1", "n2"]),
        (("view", "-s", "pi"), ["pi-1", "pi-2"]),
        (("view", "-n", ""), ["n1", "n2"]),
        (("view", "-T", ""), ["default", "vision"]),
        (("view", "-a", ""), ["pi"]),
        (("view", "-e", ""), ["e1"]),
        (("list", "-s", "--app", ""), ["pi"]),
        (("list", "-t", "pi-2"), ["pi-2"]),
        (("create", "--tenant", ""), ["default", "vision"]),
        (("create", "-a", "p"), ["pi"]),
        (("create", "--prefer-node", ""), ["n1", "n2"]),
        (("unregister", "-a", ""), ["pi"]),
        (("logs", "-e", ""), ["e1"]),
        (("explain", ""), ["session", "task"]),
        (("explain", "session", ""), ["pi-1", "pi-2"]),
        (("explain", "task", "pi-1", ""), []),
    ],
)
def test_names_are_completed_from_the_cluster(
    script: Script,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    offered: list[str],
) -> None:
    script.answers["ListSession"] = ty.SessionList(sessions=[session("pi-2"), session("pi-1")])
    script.answers["ListTenants"] = ty.TenantList(tenants=[tenant("vision"), tenant("default")])
    script.answers["ListNodes"] = ty.NodeList(nodes=[node("n2"), node("n1")])
    script.answers["ListApplication"] = ty.ApplicationList(
        applications=[ty.Application(metadata=ty.Metadata(name="pi"))]
    )
    script.answers["ListExecutor"] = ty.ExecutorList(executors=[ty.Executor(metadata=ty.Metadata(id="e1"))])
    assert complete(monkeypatch, capsys, *words) == offered


@pytest.mark.parametrize(("command", "state"), [("close", ty.SessionState.Open), ("delete", ty.SessionState.Closed)])
def test_only_sessions_that_can_be_meant_are_offered(
    script: Script,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    state: ty.SessionState,
) -> None:
    script.answers["ListSession"] = ty.SessionList(sessions=[session("pi-1")])
    assert complete(monkeypatch, capsys, command, "-s", "") == ["pi-1"]
    request = script.request("ListSession", fe.ListSessionRequest)
    assert isinstance(request, fe.ListSessionRequest)
    assert list(request.states) == [state]


def test_completion_is_quick_and_starts_nothing(
    script: Script, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script.answers["ListNodes"] = ty.NodeList(nodes=[node("n1")])
    assert complete(monkeypatch, capsys, "--endpoint", "http://h:1", "node", "view", "") == ["n1"]
    assert (script.settings.endpoint, script.settings.timeout, script.settings.start) == ("http://h:1", 1.0, False)
    assert script.closed


def test_completion_after_an_unknown_command_complains_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "tenant" in complete(monkeypatch, capsys, "nonsense", "")


def test_completion_is_silent_when_the_cluster_fails(
    script: Script, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script.answers["ListNodes"] = UnavailableError("can't connect")
    assert complete(monkeypatch, capsys, "node", "view", "") == []
