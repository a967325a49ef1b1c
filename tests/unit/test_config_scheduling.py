"""Settings of the scheduler and of nodes: tenants, policies, times, labels, taints, GPUs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flame.config import ClusterSection, ExecutorsSection, SchedulingSection, WarmSection, read_cluster
from flame.engine.engine import EngineSettings
from flame.model.errors import InvalidConfigError
from flame.model.resources import Resources
from flame.model.tenants import Quota, TenantSpec
from flame.node.daemon import settings_of
from flame.shims.container_limits import ImageLimits

GIB = 1024**3


def cluster(folder: Path, text: str) -> ClusterSection:
    """The section `cluster` with these lines; a file with notes would not be fully in effect."""
    config, notes = read_cluster(written(folder, text))
    assert not notes
    return config.cluster


def written(folder: Path, text: str) -> Path:
    file = folder / "flame-cluster.yaml"
    lines = ["cluster:", "  name: c", "  endpoint: http://127.0.0.1:8080"]
    file.write_text("\n".join(lines + [f"  {line}" for line in text.strip("\n").splitlines()]) + "\n")
    return file


def refused(folder: Path, text: str) -> str:
    with pytest.raises(InvalidConfigError) as caught:
        read_cluster(written(folder, text))
    error = caught.value
    return f"{error.message}; {error.remedy}".replace(str(folder) + "/flame-cluster.yaml:", "")


# --- the scheduler ---------------------------------------------------------------------------------------------------


def test_what_is_not_said_is_as_the_engine_has_it() -> None:
    engine, section = EngineSettings(), ClusterSection()
    assert section.policies == engine.policies
    assert section.scheduling.preemption_grace * 1000 == engine.preemption_grace_ms
    assert section.scheduling.unsatisfiable * 1000 == engine.unsatisfiable_ms
    assert section.scheduling.gang_ports == engine.gang_ports
    assert section.limits.max_pending == engine.max_pending


def test_policies_of_others_pass_in_their_order(tmp_path: Path) -> None:
    assert cluster(tmp_path, "policies: [theirs, drf]").policies == ("theirs", "drf")


def test_times_ports_and_limits(tmp_path: Path) -> None:
    section = cluster(
        tmp_path,
        """
scheduling:
  preemption_grace: 0
  unsatisfiable: 2.5
  gang_ports: [4000, 4000]
limits:
  max_pending: 1000
""",
    )
    assert section.scheduling == SchedulingSection(preemption_grace=0, unsatisfiable=2.5, gang_ports=(4000, 4000))
    assert section.limits.max_pending == 1000


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("scheduling: {preemption_grace: soon}", "4: cluster.scheduling.preemption_grace: 'soon' is not a number"),
        ("scheduling: {preemption_grace: -1}", "preemption_grace: -1 is out of range; it may be 0, up to 86400"),
        ("scheduling: {unsatisfiable: 0}", "unsatisfiable: 0 is out of range; it may be more than 0, up to 1e+09"),
        ("scheduling: {unsatisfiable: nan}", "unsatisfiable: nan is out of range"),
        ("scheduling: {gang_port: [1, 2]}", "scheduling.gang_port: unknown key; did you mean 'gang_ports'?"),
        ("scheduling: {gang_ports: [5000]}", "gang_ports: invalid range ['5000']; write [FIRST, LAST], ports from"),
        ("scheduling: {gang_ports: [5001, 5000]}", "gang_ports: invalid range ['5001', '5000']"),
        ("scheduling: {gang_ports: [80, 5000]}", "gang_ports: invalid range ['80', '5000']"),
        ("scheduling: {gang_ports: [5000, 65536]}", "gang_ports: invalid range ['5000', '65536']"),
        ("limits: {max_pending: -1}", "4: cluster.limits.max_pending: -1 is out of range"),
    ],
)
def test_mistakes_of_scheduling_are_named(tmp_path: Path, line: str, message: str) -> None:
    assert message in refused(tmp_path, line)


@pytest.mark.parametrize("number", range(3))
def test_the_examples_of_the_documentation_are_right(tmp_path: Path, number: int) -> None:
    text = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
    blocks = re.findall(r"^```yaml\n(cluster:\n.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    file = tmp_path / "flame-cluster.yaml"
    file.write_text(blocks[number])
    assert read_cluster(file)[1] == []


# --- tenants ---------------------------------------------------------------------------------------------------------


def test_tenants_stand_behind_their_parents(tmp_path: Path) -> None:
    section = cluster(
        tmp_path,
        """
tenants:
  research:
    weight: 2.5
    guarantee: cpu=4,mem=8g
    quota: {cpu: 16, memory: 64Gi, gpu: 0, sessions: 10, pending: 100000}
    description: those who find out
    tenants:
      vision:
        weight: 3
        tenants:
          labels:
  default:
    quota:
      sessions: 5
""",
    )
    assert section.tenants == (
        (
            "research",
            TenantSpec(
                weight=2.5,
                guarantee=Resources(cpu=4, memory=8 * GIB),
                quota=Quota(cpu=16, memory=64 * GIB, gpu=0, sessions=10, pending=100_000),
                description="those who find out",
            ),
        ),
        ("vision", TenantSpec(parent="research", weight=3)),
        ("labels", TenantSpec(parent="vision")),
        ("default", TenantSpec(quota=Quota(sessions=5))),
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("tenants: [a]", "4: cluster.tenants: has to be a mapping"),
        ("tenants: {a: 3}", "4: cluster.tenants.a: has to be a mapping"),
        ("tenants: {a: {wieght: 1}}", "4: cluster.tenants.a.wieght: unknown key; did you mean 'weight'?"),
        ("tenants: {a: {weight: 0}}", "4: cluster.tenants.a.weight: 0 is out of range; it may be more than 0"),
        ("tenants: {a: {weight: -2}}", "a.weight: -2 is out of range"),
        ("tenants: {a: {weight: inf}}", "a.weight: inf is out of range"),
        ("tenants: {a: {weight: .nan}}", "a.weight: '.nan' is not a number"),
        ("tenants: {a: {weight: 1e7}}", "a.weight: 1e7 is out of range; it may be more than 0, up to 1e+06"),
        ("tenants: {a: {weight: heavy}}", "a.weight: 'heavy' is not a number"),
        ("tenants: {a: {guarantee: cpu=-1}}", "a.guarantee: invalid number '-1' for cpu"),
        ("tenants: {a: {quota: {cpu: -1}}}", "a.quota.cpu: -1 is out of range"),
        ("tenants: {a: {quota: {cpu: 9223372036854775808}}}", "a.quota.cpu: 9223372036854775808 is out of range"),
        ("tenants: {a: {quota: {mem: 1g}}}", "a.quota.mem: unknown key; did you mean 'memory'?"),
        (
            "tenants: {a: {guarantee: 'cpu=4', quota: {cpu: 3}}}",
            "4: cluster.tenants.a.quota.cpu: 3 is less than the guarantee of 4",
        ),
        (
            "tenants: {a: {guarantee: 'mem=4g', quota: {memory: 512m}}}",
            "a.quota.memory: 512Mi is less than the guarantee of 4Gi",
        ),
        ("tenants: {a: {tenants: {b: {color: red}}}}", "4: cluster.tenants.a.tenants.b.color: unknown key"),
        ("tenants: {'': {}}", "4: cluster.tenants: '' is no name for a tenant"),
        ("tenants: {'a b': {}}", "4: cluster.tenants.a b: 'a b' is no name for a tenant"),
        ("tenants: {-a: {}}", "'-a' is no name for a tenant; use up to 128 letters"),
        (f"tenants: {{{'a' * 129}: {{}}}}", "is no name for a tenant"),
        (
            "tenants: {default: {tenants: {a: {}}}}",
            "4: cluster.tenants.default.tenants: default has no others below it",
        ),
        ("tenants: {a: {}, a: {}}", "4: cluster.tenants.a: stands twice, first in line 4"),
    ],
)
def test_mistakes_of_tenants_are_named(tmp_path: Path, line: str, message: str) -> None:
    assert message in refused(tmp_path, line)


def test_a_name_stands_once_in_the_whole_tree(tmp_path: Path) -> None:
    text = """
tenants:
  a:
    tenants:
      b: {}
  c:
    tenants:
      b: {}
"""
    assert "10: cluster.tenants.c.tenants.b: there is a tenant 'b' already, at 7: cluster.tenants.a.tenants.b" in (
        refused(tmp_path, text)
    )


# --- nodes -----------------------------------------------------------------------------------------------------------


def test_what_a_node_says_of_itself(tmp_path: Path) -> None:
    section = cluster(
        tmp_path,
        """
executors:
  labels: {zone: a, disk: ssd, spare: ""}
  taints: [gpu=only, noisy]
  limits: {max_executors: 5}
  warm: {max_instances: 0, idle: 1.5}
  devices: [0, GPU-1f, MIG-7c]
  gpu_fraction: 4
""",
    )
    executors = section.executors
    assert executors == ExecutorsSection(
        limits=executors.limits,
        labels={"zone": "a", "disk": "ssd", "spare": ""},
        taints=("gpu=only", "noisy"),
        warm=WarmSection(max_instances=0, idle=1.5),
        devices=("0", "GPU-1f", "MIG-7c"),
        gpu_fraction=4,
    )
    assert executors.limits.max_executors == 5


def test_all_of_it_reaches_the_executor_manager(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        """
executors:
  labels: {zone: a}
  taints: [noisy]
  limits: {max_executors: 5}
  warm: {max_instances: 3, idle: 7}
  packages: {folder: packages, install_timeout: 60, keep_count: 3, keep_size: 1g}
  images: {max_size: 2g, max_files: 5, timeout: 7.5, keep_count: 4, keep_size: 3g}
  devices: []
  gpu_fraction: 2
""",
    )
    node = settings_of(read_cluster(file)[0], tmp_path)
    assert (node.labels, node.taints, node.max_executors) == ({"zone": "a"}, ("noisy",), 5)
    assert (node.warm_instances, node.warm_idle, node.devices, node.gpu_fraction) == (3, 7.0, (), 2)
    assert node.packages == tmp_path / "packages"
    limits = node.package_limits
    assert (limits.install_timeout, limits.keep_count, limits.keep_bytes) == (60.0, 3, 1024**3)
    gib = 1024**3
    assert node.image_limits == ImageLimits(2 * gib, max_files=5, timeout=7.5, keep_count=4, keep_bytes=3 * gib)


@pytest.mark.parametrize(
    ("lines", "limit"),
    [
        ("limits: {max_executors: 64}", 64),
        ("limits: {max_executors: 64}\nexecutors: {limits: {max_executors: 200}}", 200),
        ("insecure: false", 0),
    ],
)
def test_the_limit_of_the_cluster_is_for_nodes_that_have_none(tmp_path: Path, lines: str, limit: int) -> None:
    config, _ = read_cluster(written(tmp_path, lines))
    assert settings_of(config, tmp_path).max_executors == limit


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{lables: {a: b}}", "4: cluster.executors.lables: unknown key; did you mean 'labels'?"),
        ("{labels: [a]}", "4: cluster.executors.labels: has to be a mapping"),
        ("{labels: {a=b: c}}", "4: cluster.executors.labels.a=b: invalid label 'a=b=c'"),
        ("{labels: {zone: 'a,b'}}", "4: cluster.executors.labels.zone: invalid label 'zone=a,b'"),
        ("{labels: {flame.arch: x}}", "label 'flame.arch': names that begin with 'flame.' are given by the node"),
        (f"{{labels: {{{'k' * 257}: x}}}}", "is longer than 256 characters"),
        ("{taints: gpu}", "4: cluster.executors.taints: has to be a list"),
        ("{taints: ['=x']}", "cluster.executors.taints: invalid taint '=x': write KEY=VALUE or KEY"),
        ("{taints: [a, a]}", "cluster.executors.taints: 'a' stands twice"),
        ("{limits: {max_executors: 0}}", "cluster.executors.limits.max_executors: 0 is out of range"),
        ("{warm: {max_instances: -1}}", "cluster.executors.warm.max_instances: -1 is out of range"),
        ("{warm: {idle: -0.5}}", "cluster.executors.warm.idle: -0.5 is out of range"),
        ("{images: {max_files: 0}}", "cluster.executors.images.max_files: 0 is out of range"),
        ("{packages: {install_timeout: 0}}", "cluster.executors.packages.install_timeout: 0 is out of range"),
        ("{devices: 0}", "cluster.executors.devices: has to be a list"),
        ("{devices: [-1]}", "cluster.executors.devices: invalid GPU '-1'; write an index, GPU-... or MIG-..."),
        ("{devices: [0, 0]}", "GPU '0' stands twice; gpu_fraction lets executors share GPUs"),
        ("{gpu_fraction: 0}", "cluster.executors.gpu_fraction: 0 is out of range"),
        ("{gpu_fraction: 0.5}", "cluster.executors.gpu_fraction: '0.5' is not a whole number"),
        (
            "{devices: [0, 1], gpu_fraction: 2, capacity: 'cpu=1,gpu=5'}",
            "cluster.executors.capacity: gpu=5 is more than the 4 that devices and gpu_fraction make",
        ),
    ],
)
def test_mistakes_of_nodes_are_named(tmp_path: Path, line: str, message: str) -> None:
    assert message in refused(tmp_path, f"executors: {line}")
