"""Applications: register, get, list, unregister, and what is refused."""

import json

import flamepy
import grpc
from checks import main, raised, refused, unique
from flamepy.proto.frontend_pb2 import RegisterApplicationRequest, UpdateApplicationRequest
from flamepy.proto.types_pb2 import ApplicationSpec


def frontend():
    return flamepy.core.client.ConnectionInstance.instance()._frontend


def check_three_applications_are_there_from_the_start():
    found = {application.name: application for application in flamepy.list_applications()}
    for name in ("flmping", "flmexec", "flmrun"):
        application = found[name]
        assert application.shim == flamepy.Shim.HOST
        assert (application.max_instances, application.delay_release) == (1_000_000, 60)
        assert application.working_directory is None
    assert found["flmrun"].installer == "python"
    schema = json.loads(found["flmexec"].schema.input)
    assert (schema["required"], set(schema["properties"])) == (
        ["language", "code"],
        {"language", "runtime", "code", "input"},
    )


def check_flmexec_answers_with_the_bytes_that_a_script_prints():
    session = flamepy.create_session("flmexec")
    requests = [
        {"language": "shell", "code": "cat; exit 3", "input": [104, 105]},
        {"language": "shell", "code": "cat; echo end >&2", "input": None},
        {"language": "Python", "runtime": None, "code": "print(6 * 7)", "input": None},
    ]
    answers = [json.loads(session.invoke(json.dumps(request).encode()))["data"] for request in requests]
    assert [bytes(answer) for answer in answers] == [b"hi", b"", b"42\n"]
    error = raised(lambda: session.invoke(json.dumps({"language": "cobol", "code": ""}).encode()))
    assert "unsupported language 'cobol'" in error.message
    session.close()


def check_all_attributes_come_back():
    name = unique("app")
    attributes = flamepy.ApplicationAttributes(
        shim=flamepy.Shim.HOST,
        image="example/image:1",
        description="says hello",
        labels=["a", "b"],
        command="/bin/echo",
        arguments=["-n", "hello"],
        environments={"A": "1", "B": ""},
        working_directory="/tmp",
        max_instances=7,
        delay_release=3,
        schema=flamepy.ApplicationSchema(input='{"type": "string"}', output='{"type": "object"}'),
        url="file:///tmp/package.zip",
        installer="binary",
    )
    flamepy.register_application(name, attributes)
    got = flamepy.get_application(name)
    assert got is not None
    assert (got.id, got.name, got.state) == (name, name, flamepy.ApplicationState.ENABLED)
    assert got.creation_time.year > 2000
    for field in (
        "shim", "image", "description", "labels", "command", "arguments", "environments", "working_directory",
        "max_instances", "delay_release", "url", "installer",
    ):  # fmt: skip
        assert getattr(got, field) == getattr(attributes, field), field
    assert (got.schema.input, got.schema.output) == ('{"type": "string"}', '{"type": "object"}')
    assert got.schema.common_data is None


def check_absent_attributes_get_defaults_or_stay_absent():
    name = unique("app")
    flamepy.register_application(name, {})
    got = flamepy.get_application(name)
    assert (got.max_instances, got.delay_release, got.shim) == (1_000_000, 60, flamepy.Shim.HOST)
    for field in ("image", "description", "command", "working_directory", "schema", "url", "installer"):
        assert getattr(got, field) is None, field
    assert (got.labels, got.arguments, got.environments) == ([], [], {})


def check_empty_is_not_absent_except_for_the_working_directory():
    name = unique("app")
    flamepy.register_application(name, {"description": "", "image": "", "working_directory": ""})
    got = flamepy.get_application(name)
    assert (got.description, got.image, got.working_directory) == ("", "", None)


def check_an_unknown_application_is_none():
    assert flamepy.get_application(unique("missing")) is None


def check_a_name_can_be_taken_once():
    name = unique("app")
    flamepy.register_application(name, {})
    error = raised(lambda: flamepy.register_application(name, {}))
    assert error.code == flamepy.FlameErrorCode.INTERNAL
    assert f"Application '{name}' already exists" in error.message


def check_names_that_could_be_paths_are_refused():
    names = ["", "..", "a/b", "a\\b", ".hidden", "-dash", "a..b", "with space", "umlaut-ü", "x" * 254, "a\0b"]
    for name in names:
        error = raised(lambda name=name: flamepy.register_application(name, {}))
        assert error.code == flamepy.FlameErrorCode.INTERNAL
        assert "application name" in error.message, error.message
    flamepy.register_application(unique("x" * 200 + "_.-9"), {})


def check_the_working_directory_is_absolute():
    error = raised(lambda: flamepy.register_application(unique("app"), {"working_directory": "here"}))
    assert "working_directory must be an absolute path, got: here" in error.message


def check_schemas_are_schemas():
    for field, what in (("input", "input"), ("output", "output"), ("common_data", "common data")):
        for text in ("no json", '{"type": "nonsense"}', "[1]", '{"properties": {"a": 1}}'):
            schema = flamepy.ApplicationSchema(**{field: text})
            error = raised(lambda schema=schema: flamepy.register_application(unique("app"), {"schema": schema}))
            assert f"invalid {what} schema: " in error.message, error.message


def check_a_request_without_spec_is_an_error_of_grpc():
    for call in (
        lambda: frontend().RegisterApplication(RegisterApplicationRequest(name="x")),
        lambda: frontend().UpdateApplication(UpdateApplicationRequest(name="x")),
    ):
        code, text = refused(call)
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert "spec is missed" in text


def check_update_replaces_everything():
    name = unique("app")
    flamepy.register_application(name, {"description": "old", "labels": ["a"], "max_instances": 3})
    created = flamepy.get_application(name).creation_time
    request = UpdateApplicationRequest(name=name, application=ApplicationSpec(description="new"))
    result = frontend().UpdateApplication(request)
    assert (result.return_code, result.HasField("message")) == (0, False)
    got = flamepy.get_application(name)
    assert (got.description, got.labels, got.max_instances) == ("new", [], 1_000_000)
    assert got.creation_time == created
    request.name = unique("missing")
    result = frontend().UpdateApplication(request)
    assert (result.return_code, "not found" in result.message) == (-1, True)


def check_unregister():
    name = unique("app")
    flamepy.register_application(name, {})
    flamepy.unregister_application(name)
    assert flamepy.get_application(name) is None
    flamepy.unregister_application(name)  # unknown names are no error


def check_open_sessions_keep_an_application():
    name = unique("app")
    flamepy.register_application(name, {"command": "/bin/true"})
    session = flamepy.create_session(name)
    error = raised(lambda: flamepy.unregister_application(name))
    assert "open sessions" in error.message
    result = frontend().UpdateApplication(UpdateApplicationRequest(name=name, application=ApplicationSpec()))
    assert (result.return_code, "open sessions" in result.message) == (-1, True)
    session.close()
    flamepy.unregister_application(name)
    assert session.id in raised(lambda: flamepy.get_session(session.id)).message


if __name__ == "__main__":
    main(globals())
