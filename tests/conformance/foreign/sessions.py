"""Sessions: create, open, list, get, close."""

import flamepy
from checks import main, raised, service_application, unique
from flamepy import FlameErrorCode, ResourceRequirement, SessionAttributes, SessionState


def check_a_session_as_created():
    session = flamepy.create_session(service_application())
    assert session.id.startswith(service_application() + "-")
    assert session.application == service_application()
    assert session.state == SessionState.OPEN
    assert (session.pending, session.running, session.succeed, session.failed) == (0, 0, 0, 0)
    assert session.completion_time is None
    assert session.events == []
    assert session.common_data() is None
    session.close()


def check_resources_are_resolved_and_verbatim():
    from flamepy.proto.frontend_pb2 import GetSessionRequest

    frontend = flamepy.core.client.ConnectionInstance.instance()._frontend
    plain = flamepy.create_session(service_application())
    spec = frontend.GetSession(GetSessionRequest(session_id=plain.id)).spec
    assert (spec.resreq.cpu, spec.resreq.memory, spec.resreq.gpu, spec.batch_size) == (1, 1024**3, 0, 1)
    assert not spec.HasField("max_instances")
    own = flamepy.create_session(
        service_application(), max_instances=5, min_instances=0, batch_size=4, resreq=ResourceRequirement(0, 1, 0)
    )
    spec = frontend.GetSession(GetSessionRequest(session_id=own.id)).spec
    assert (spec.resreq.cpu, spec.resreq.memory, spec.resreq.gpu, spec.batch_size) == (0, 1, 0, 1)
    assert spec.max_instances == 5
    error = raised(lambda: flamepy.create_session(service_application(), resreq=ResourceRequirement(0, 0, 0)))
    assert "resreq asks for nothing" in error.message  # nodes could take any number of them
    plain.close()
    own.close()


def check_common_data_absent_empty_and_given():
    for data in (None, b"", b"\0data"):
        session = flamepy.create_session(service_application(), common_data=data)
        assert session.common_data() == data
        assert flamepy.get_session(session.id).common_data() == data
        assert session.invoke(b"common") == repr(data).encode()
        session.close()


def check_an_id_can_be_taken_once():
    session = flamepy.create_session(service_application(), session_id=unique("mine"))
    error = raised(lambda: flamepy.create_session(service_application(), session_id=session.id))
    assert error.code == FlameErrorCode.INTERNAL
    assert f"Session '{session.id}' already exists" in error.message
    session.close()
    raised(lambda: flamepy.create_session(service_application(), session_id=session.id))


def check_any_text_is_an_id_as_far_as_it_goes():
    for text in ("../../etc", "a/b", "ü ö", "with space", "x" * 400):
        session = flamepy.create_session(service_application(), session_id=unique(text))
        assert flamepy.get_session(session.id).id == session.id
        session.close()
    error = raised(lambda: flamepy.create_session(service_application(), session_id=""))
    assert "session id" in error.message


def check_an_unknown_application_is_an_error():
    name = unique("missing")
    error = raised(lambda: flamepy.create_session(name))
    assert error.code == FlameErrorCode.INTERNAL
    assert f"application <{name}> not found" in error.message


def check_get_of_an_unknown_session():
    name = unique("missing")
    error = raised(lambda: flamepy.get_session(name))
    assert error.message == f"failed to get session: {name}"


def check_open_of_an_unknown_session():
    name = unique("missing")
    error = raised(lambda: flamepy.open_session(name))
    assert error.code == FlameErrorCode.NOT_FOUND
    assert f"session <{name}> not found" in error.message


def check_open_of_an_open_session():
    session = flamepy.create_session(service_application(), common_data=b"x")
    again = flamepy.open_session(session.id)
    assert (again.id, again.application, again.common_data()) == (session.id, service_application(), b"x")
    session.close()


def check_open_with_a_spec_creates_or_compares():
    name = unique("open")
    spec = SessionAttributes(application=service_application(), id=name, min_instances=0, max_instances=3)
    made = flamepy.open_session(name, spec)
    assert (made.id, made.state) == (name, SessionState.OPEN)
    assert flamepy.open_session(name, spec).id == name
    spec.common_data = b"not compared"
    assert flamepy.open_session(name, spec).id == name
    spec.max_instances = 4
    error = raised(lambda: flamepy.open_session(name, spec))
    assert error.code == FlameErrorCode.INVALID_ARGUMENT
    assert f"session <{name}> spec mismatch: max_instances differs (expected 3, got 4)" in error.message
    spec.max_instances = 3
    spec.resreq = ResourceRequirement(cpu=2)
    error = raised(lambda: flamepy.open_session(name, spec))
    assert f"session <{name}> spec mismatch: resreq differs" in error.message
    made.close()


def check_a_closed_session_can_not_be_opened():
    session = flamepy.create_session(service_application())
    session.close()
    error = raised(lambda: flamepy.open_session(session.id))
    assert error.code == FlameErrorCode.INVALID_ARGUMENT
    assert f"session <{session.id}> is not open" in error.message


def check_close():
    session = flamepy.create_session(service_application())
    assert session.invoke(b"echo:x") == b"x"
    closed = flamepy.close_session(session.id)
    assert closed.state == SessionState.CLOSED
    assert closed.succeed == 1
    assert closed.completion_time >= closed.creation_time
    again = flamepy.close_session(session.id)
    assert again.state == SessionState.CLOSED
    got = flamepy.get_session(session.id)
    assert (got.state, got.succeed) == (SessionState.CLOSED, 1)


def check_close_of_an_unknown_session():
    name = unique("missing")
    assert f"session <{name}>" in raised(lambda: flamepy.close_session(name)).message


def check_a_closed_session_takes_no_tasks():
    session = flamepy.create_session(service_application())
    session.close()
    error = raised(lambda: session.create_task(b"echo:x"))
    assert f"session <{session.id}> is not open" in error.message


def check_list():
    first = flamepy.create_session(service_application(), common_data=b"first")
    second = flamepy.create_session(service_application())
    second.close()
    listed = {session.id: session for session in flamepy.list_sessions()}
    assert listed[first.id].state == SessionState.OPEN
    assert listed[first.id].common_data() == b"first"
    assert listed[second.id].state == SessionState.CLOSED
    first.close()


def check_min_instances_start_without_a_task():
    session = flamepy.create_session(service_application(), min_instances=1)
    found = [executor for executor in flamepy.list_executors() if executor.status.session_id == session.id]
    assert len(found) == 1
    assert found[0].metadata.id
    assert found[0].spec.node
    assert found[0].spec.resreq.cpu == 1
    session.close()


if __name__ == "__main__":
    main(globals())
