"""The applications that every cluster has from the start."""

from __future__ import annotations

from flame.model.specs import ApplicationSchema, ApplicationSpec

_SCRIPT = """{
  "$schema": "http://json-schema.org/draft-07/schema#",
  "type": "object",
  "properties": {
    "language": {"type": "string", "description": "shell, python, or a language of FLAME_EXEC_INTERPRETERS"},
    "runtime": {"type": ["string", "null"], "description": "the shell, or the version of Python"},
    "code": {"type": "string", "description": "the script"},
    "input": {"type": ["array", "null"], "items": {"type": "integer"}, "description": "bytes of its standard input"}
  },
  "required": ["language", "code"]
}"""

BUILT_IN = {
    "flmping": ApplicationSpec(
        command="flmping-service", description="answers with host, duration and memory", schema=ApplicationSchema()
    ),
    "flmexec": ApplicationSpec(
        command="flmexec-service",
        description="runs scripts and answers with what they print",
        schema=ApplicationSchema(input=_SCRIPT, output='{"type": "string"}'),
    ),
    "flmrun": ApplicationSpec(
        command="python",
        arguments=("-m", "flame.runner.runpy"),
        description="runs the functions and objects of Runners",
        installer="python",
        schema=ApplicationSchema(),
    ),
}
