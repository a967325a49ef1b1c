"""Services of one function on Python objects, with an embedded cluster and with an object cache."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import flame
from blackbox.services.typed_service import Answer, Question
from cache_daemon import CacheDaemon
from flame.local import Cluster
from flame.service import FlameInstance, Session

SERVICE = Path(__file__).parent / "services" / "typed_service.py"
TESTS = str(Path(__file__).parent.parent)
SECONDS = 30.0


@pytest.fixture(scope="module")
def connection() -> Iterator[flame.Connection]:
    with Cluster(executors=3) as cluster, flame.connect(cluster.endpoint) as connection:
        for name, arguments in (("typed", []), ("coroutines", ["--coroutines"])):
            # As a module, so that both sides know its classes by the same name.
            attributes = {
                "command": sys.executable,
                "arguments": ["-c", f"import sys; sys.argv += {arguments!r}\n{PROGRAM}"],
                "environments": {"PYTHONPATH": TESTS},
            }
            connection.register_application(name, attributes)
        yield connection


PROGRAM = """
from blackbox.services import typed_service
(typed_service.coroutines if "--coroutines" in sys.argv else typed_service.instance).run()
"""


def test_requests_and_answers_are_objects(connection: flame.Connection) -> None:
    with Session("typed", connection=connection) as session:
        assert session.invoke(Question("why"), SECONDS) == Answer("WHY")
        assert session.invoke(Question("nothing"), SECONDS) is None
        assert session.context() is None
        futures = [session.submit(Question(str(n))) for n in range(100)]
        assert [future.result(SECONDS).text for future in futures] == [str(n) for n in range(100)]


def test_requests_of_another_type_are_refused(connection: flame.Connection) -> None:
    with (
        Session("typed", connection=connection) as session,
        pytest.raises(flame.InvalidArgumentError, match="takes a Question, not a str"),
    ):
        session.invoke("why", SECONDS)


def test_coroutines_answer(connection: flame.Connection) -> None:
    with Session("coroutines", resreq={"cpu": 1, "mem": "512m"}, connection=connection) as session:
        assert session.invoke(0.01, SECONDS) == 0.02
        assert session.invoke(0, SECONDS) == 0
        with pytest.raises(flame.InvalidArgumentError, match="takes a float, not a str"):
            session.invoke("long", SECONDS)


def test_a_context_without_a_cache_is_read_only(connection: flame.Connection) -> None:
    with Session("typed", {"a": [1]}, connection=connection) as session:
        assert session.invoke(Question("why"), SECONDS) == Answer("WHY", {"a": [1]})
        assert session.context() == {"a": [1]}
        with pytest.raises(flame.InvalidConfigError, match="replacing the context of a session needs the object cache"):
            session.invoke(Question("replace"), SECONDS)


def test_a_context_in_the_cache_is_shared_and_replaced(
    connection: flame.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with CacheDaemon(tmp_path) as cache:
        monkeypatch.setenv("FLAME_CACHE_ENDPOINT", cache.endpoint)
        with Session("typed", "first", connection=connection) as session:
            assert session.invoke(Question("why"), SECONDS) == Answer("WHY", "first")
            assert session.invoke(Question("replace"), SECONDS) == Answer("REPLACE", "another")
            other = Session(session_id=session.id(), connection=connection)
            assert session.context() == other.context() == "another"


def test_how_a_session_is_made_and_ended(connection: flame.Connection) -> None:
    with pytest.raises(ValueError, match="Either 'name' or 'session_id'"):
        Session()
    with pytest.raises(ValueError, match="Cannot provide both"):
        Session("typed", session_id="x")
    session = Session("typed", connection=connection)
    session.close()
    session.close()
    with pytest.raises(RuntimeError, match="closed"):
        session.invoke(Question("why"))


def test_an_entrypoint_takes_a_request_or_nothing() -> None:
    instance = FlameInstance()

    with pytest.raises(AssertionError, match="one positional parameter"):
        instance.entrypoint(lambda first, second: None)
    with pytest.raises(AssertionError, match="one positional parameter"):
        instance.entrypoint(lambda *requests: None)
    with pytest.raises(flame.InvalidStateError, match="nothing to serve"):
        instance.run()
    assert instance.entrypoint(SERVICE.is_socket) == SERVICE.is_socket
