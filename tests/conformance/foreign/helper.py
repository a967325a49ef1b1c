"""The service helper of the foreign client, on both sides."""

import sys
from pathlib import Path

import flamepy
from checks import raised, run_checks, unique
from flamepy.service import Session

SERVICE = str(Path(__file__).with_name("helper_service.py"))


def application(*arguments: str) -> str:
    name = unique("helper")
    flamepy.register_application(
        name, flamepy.ApplicationAttributes(command=sys.executable, arguments=[SERVICE, *arguments])
    )
    return name


def check_requests_and_answers() -> None:
    with Session(application()) as session:
        assert session.invoke({"a": 1, "b": 2}) == 3
        assert session.invoke({"kind": "nothing"}) is None
        assert session.context() is None


def check_contexts() -> None:
    with Session(application(), ctx={"count": 1}) as session:
        assert session.invoke({"kind": "context"}) == {"count": 1}
        assert session.invoke({"kind": "count", "by": 2}) == 3
        assert session.context() == {"count": 3}
        again = Session(session_id=session.id())
        assert again.context() == {"count": 3}
        assert again.invoke({"kind": "count", "by": 1}) == 4


def check_coroutines() -> None:
    with Session(application("--coroutines"), resreq={"cpu": 1, "mem": "512m"}) as session:
        assert session.invoke(21) == 42


def check_failures() -> None:
    with Session(application()) as session:
        error = raised(lambda: session.invoke({"kind": "fail"}))
        assert "what happened" in error.message


if __name__ == "__main__":
    run_checks(dict(globals()))
