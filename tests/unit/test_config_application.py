"""Application documents as `flmctl register` reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from flame.config.application import parse_applications
from flame.model.errors import InvalidConfigError
from flame.model.isolation import Limits
from flame.model.specs import ApplicationSchema, ApplicationSpec
from flame.model.states import Shim

FILE = Path("apps.yaml")

FULL = """---
metadata:
  name: pi
spec:
  shim: Host
  image: registry/pi:1
  description: estimates
  labels: [math, demo]
  command: /opt/pi
  arguments: [--fast, 3]
  environments:
    THREADS: 2
    EMPTY:
  working_directory: /tmp
  max_instances: 4
  delay_release: 0
  schema:
    input: '{"type": "integer"}'
  url: file:///opt/pi
  installer: python
  start_timeout_ms: 5000
  warm_instances: 2
  isolation: process
  network: none
  limits: {memory: 64Mi, pids: 20, cpu: 0.5, disk: 8Mi, wall: 1.5, output: 1Mi}
  readable_objects: [datasets/shared, models/*]
---
metadata: {name: rest}
spec: {shim: rest}
"""


def test_all_fields_of_several_documents() -> None:
    first, second = parse_applications(FILE, FULL)
    assert first.name == "pi"
    assert first.spec == ApplicationSpec(
        shim=Shim.HOST,
        description="estimates",
        labels=("math", "demo"),
        image="registry/pi:1",
        command="/opt/pi",
        arguments=("--fast", "3"),
        environments={"THREADS": "2", "EMPTY": ""},
        working_directory="/tmp",
        max_instances=4,
        delay_release=0,
        schema=ApplicationSchema(input='{"type": "integer"}'),
        url="file:///opt/pi",
        installer="python",
        start_timeout_ms=5000,
        warm_instances=2,
        isolation="process",
        network="none",
        limits=Limits(64 << 20, 20, 500, 8 << 20, 1500, 1 << 20),
        readable_objects=("datasets/shared", "models/*"),
    )
    assert (second.name, second.spec) == ("rest", ApplicationSpec(shim=Shim.REST))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("metadata: {}\n", "apps.yaml:1: metadata: name is required"),
        ("metadata: {name: a}\nspec: {comand: x}\n", "apps.yaml:2: spec.comand: unknown key; did you mean 'command'?"),
        (
            "metadata: {name: a}\nspec: {shim: bare}\n",
            "apps.yaml:2: spec.shim: unknown value 'bare'; the known ones are",
        ),
        ("metadata: {name: a}\nspec: {schema: {input: 'int'}}\n", "spec.schema.input: is not JSON text"),
        ("metadata: {name: a}\n---\nmetadata: {name: a}\n", "apps.yaml:3: the file names the application 'a' twice"),
        ("metadata: {name: a}\nspec: {isolation: vm}\n", "spec.isolation: unknown value 'vm'"),
        ("metadata: {name: a}\nspec: {network: [lan]}\n", "spec.network: unknown network 'lan'"),
        ("metadata: {name: a}\nspec: {network: [a.b, host]}\n", "spec.network: 'host' is no host or address"),
        ("metadata: {name: a}\nspec: {isolation: vm}\n", "the known ones are gvisor, microvm, none, process"),
        ("metadata: {name: a}\nspec: {limits: {ram: 1}}\n", "spec.limits.ram: unknown key"),
        (
            "metadata: {name: a}\nspec: {limits: {memory: 0}}\n",
            "limits.memory: 0: nothing would start; leave it out",
        ),
        ("metadata: {name: a}\nspec: {limits: {cpu: 0.0004}}\n", "spec.limits.cpu: 0.0004: nothing would start"),
        ("metadata: {name: a}\nspec: {readable_objects: [b]}\n", "spec.readable_objects: invalid object key"),
        ("metadata: {name: a}\nspec: {readable_objects: b/c}\n", "spec.readable_objects: has to be a list"),
        ("- a\n", "apps.yaml:1: has to be a mapping"),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    with pytest.raises(InvalidConfigError) as caught:
        parse_applications(FILE, text)
    assert message in f"{caught.value.message}; {caught.value.remedy}"


def test_empty_documents_are_left_out() -> None:
    assert parse_applications(FILE, "---\n---\n") == []
