"""What is put around a component before it is compiled: its service once more, with texts where it has lists of bytes.

wasmtime's interface for C passes a list as an array of tagged values, 32 bytes and a tenth of a microsecond for each
byte; a text goes as a whole. So bytes travel as texts whose characters are those bytes. In the adapter's memory, whose
texts are Latin-1, they are the bytes again, and there they are a list for the component's own functions.
"""

from __future__ import annotations

import functools

import wasmtime

from flame.wasm.contract import ENTER, INVOKE, LEAVE, SERVICE
from flame.wasm.sections import (
    A_COMPONENT,
    ALIAS,
    AN_INSTANCE,
    COMPONENT,
    EXPORT,
    INSTANCE,
    PREAMBLE,
    imports_of,
    leb128,
    section,
    text,
)

ADAPTED = "flame:engine/texts"  # the interface that is added, of functions with the names of those of the service
_ONE = leb128(1)

# At 16 is the result of a call: 0, or 1 for an error; at 20 the option or the error's code; at 24 and 28 where the
# bytes are. A code has its place where the adapter's own error has an option, which is always there. Beyond 64 are the
# parameters, until the component has them, then what it returns; all of it is forgotten when that was read.
_TEXT = f"""
(component
  (type $service (instance
    (type $code-0 (enum "internal"))
    (export "flame-error-code" (type $code (eq $code-0)))
    (type $error-0 (record (field "code" $code) (field "message" string)))
    (export "flame-error" (type $error (eq $error-0)))
    (type $session-0 (record (field "session-id" string) (field "common-data" (option (list u8)))))
    (export "session-context" (type $session (eq $session-0)))
    (type $task-0 (record (field "task-id" string) (field "session-id" string)))
    (export "task-context" (type $task (eq $task-0)))
    (export "{ENTER}" (func (param "ctx" $session) (result (result (error $error)))))
    (export "{LEAVE}" (func (param "ctx" $session) (result (result (error $error)))))
    (export "{INVOKE}" (func (param "ctx" $task) (param "input" (option (list u8)))
      (result (result (option (list u8)) (error $error)))))))
  (import "service" (instance $service (type $service)))
  (core module $memory
    (memory (export "memory") 1)
    (global $top (mut i32) (i32.const 64))
    (func $no-memory-for-the-payload (param $bytes i64)
      (local $pages i32)
      (local.set $pages (i32.wrap_i64 (i64.shr_u (i64.add (local.get $bytes) (i64.const 65535)) (i64.const 16))))
      (if (i32.gt_u (local.get $pages) (memory.size)) (then
        (if (i32.eq (i32.const -1) (memory.grow (i32.sub (local.get $pages) (memory.size)))) (then unreachable)))))
    (func (export "realloc") (param $old i32) (param $old-size i32) (param $align i32) (param $size i32) (result i32)
      (local $at i32)
      (if (i32.and (i32.ne (local.get $old-size) (i32.const 0))
          (i32.eq (i32.add (local.get $old) (local.get $old-size)) (global.get $top)))
        (then (local.set $at (local.get $old)))
        (else (local.set $at (i32.and (i32.add (global.get $top) (i32.const 15)) (i32.const -16)))))
      (call $no-memory-for-the-payload
        (i64.add (i64.extend_i32_u (local.get $at)) (i64.extend_i32_u (local.get $size))))
      (global.set $top (i32.add (local.get $at) (local.get $size)))
      (if (i32.and (i32.ne (local.get $old-size) (i32.const 0)) (i32.ne (local.get $at) (local.get $old)))
        (then (memory.copy (local.get $at) (local.get $old) (local.get $old-size))))
      (local.get $at))
    (func (export "forget") (global.set $top (i32.const 64)))
    (func (export "done") (param i32) (global.set $top (i32.const 64))))
  (core instance $memory (instantiate $memory))
  (alias core export $memory "memory" (core memory $all))
  (alias core export $memory "realloc" (core func $allocate))
  (alias core export $memory "done" (core func $done))
  (core func $enter (canon lower (func $service "{ENTER}")
    (memory $all) (realloc $allocate) string-encoding=latin1+utf16))
  (core func $leave (canon lower (func $service "{LEAVE}")
    (memory $all) (realloc $allocate) string-encoding=latin1+utf16))
  (core func $invoke (canon lower (func $service "{INVOKE}")
    (memory $all) (realloc $allocate) string-encoding=latin1+utf16))
  (core module $main
    (import "memory" "memory" (memory 1))
    (import "memory" "forget" (func $forget))
    (import "service" "enter" (func $enter (param i32 i32 i32 i32 i32 i32)))
    (import "service" "leave" (func $leave (param i32 i32 i32 i32 i32 i32)))
    (import "service" "invoke" (func $invoke (param i32 i32 i32 i32 i32 i32 i32 i32)))
    (func $result (result i32)
      (if (i32.load8_u (i32.const 16)) (then (i32.store8 (i32.const 20) (i32.const 1))))
      (i32.const 16))
    (func (export "enter") (param i32 i32 i32 i32 i32) (result i32)
      (call $forget)
      (call $enter (local.get 0) (local.get 1) (local.get 2) (local.get 3) (local.get 4) (i32.const 16))
      (call $result))
    (func (export "leave") (param i32 i32 i32 i32 i32) (result i32)
      (call $forget)
      (call $leave (local.get 0) (local.get 1) (local.get 2) (local.get 3) (local.get 4) (i32.const 16))
      (call $result))
    (func (export "invoke") (param i32 i32 i32 i32 i32 i32 i32) (result i32)
      (call $forget)
      (call $invoke (local.get 0) (local.get 1) (local.get 2) (local.get 3) (local.get 4) (local.get 5) (local.get 6)
        (i32.const 16))
      (call $result)))
  (core instance $main (instantiate $main (with "memory" (instance $memory)) (with "service" (instance
    (export "enter" (func $enter)) (export "leave" (func $leave)) (export "invoke" (func $invoke))))))
  (func (export "{ENTER}") (param "session-id" string) (param "common-data" (option string))
    (result (result (error (option string))))
    (canon lift (core func $main "enter")
      (memory $all) (realloc $allocate) (post-return $done) string-encoding=latin1+utf16))
  (func (export "{LEAVE}") (param "session-id" string) (param "common-data" (option string))
    (result (result (error (option string))))
    (canon lift (core func $main "leave")
      (memory $all) (realloc $allocate) (post-return $done) string-encoding=latin1+utf16))
  (func (export "{INVOKE}") (param "task-id" string) (param "session-id" string) (param "input" (option string))
    (result (result (option string) (error (option string))))
    (canon lift (core func $main "invoke")
      (memory $all) (realloc $allocate) (post-return $done) string-encoding=latin1+utf16)))
"""


def adapted(source: bytes) -> bytes:
    """A component around the component, and around an adapter for it, that exports the interface ADAPTED besides.

    Raises Unreadable. Whether the service has the right types is seen when it is compiled."""
    imports = imports_of(source)
    component, instance = imports.counts[A_COMPONENT], imports.counts[AN_INSTANCE]  # the next of these
    given = [text(name) + sort + leb128(number) for name, sort, number in imports.found]
    service = leb128(instance + 1)
    return b"".join(
        [
            PREAMBLE,
            imports.sections,
            section(COMPONENT, source),
            section(COMPONENT, _adapter()),
            section(INSTANCE, _ONE + b"\0" + leb128(component) + leb128(len(given)) + b"".join(given)),
            section(ALIAS, _ONE + AN_INSTANCE + b"\0" + leb128(instance) + text(SERVICE)),
            section(INSTANCE, _ONE + b"\0" + leb128(component + 1) + _ONE + text("service") + AN_INSTANCE + service),
            section(EXPORT, _ONE + b"\0" + text(SERVICE) + AN_INSTANCE + service + b"\0"),
            section(EXPORT, _ONE + b"\0" + text(ADAPTED) + AN_INSTANCE + leb128(instance + 2) + b"\0"),
        ]
    )


@functools.cache
def _adapter() -> bytes:
    return bytes(wasmtime.wat2wasm(_TEXT))
