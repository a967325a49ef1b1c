"""Components of WebAssembly for tests, written by hand as text.

    component(core)          # the text of a component whose handlers are functions of a core module
    binary(text)             # as nodes take it

CONDUCT does what `flame.testing.conduct` says, as far as a component can, and some more.
"""

from __future__ import annotations

import wasmtime

_COMPONENT = """
(component
  {wasi}
  ;; Apart, so that functions of WASI can be lowered before the module that calls them is there. What a call allocates
  ;; is forgotten when its result was read; `keep` excepts what was allocated so far.
  (core module $memory
    (memory (export "memory") 1)
    (global $top (mut i32) (i32.const 8192))
    (global $base (mut i32) (i32.const 8192))
    (func (export "cabi_realloc") (param i32 i32) (param $align i32) (param $size i32) (result i32)
      (local $at i32)
      (local.set $at (i32.and (i32.add (global.get $top) (i32.const 15)) (i32.const -16)))
      (global.set $top (i32.add (local.get $at) (local.get $size)))
      (if (i32.gt_u (global.get $top) (i32.shl (memory.size) (i32.const 16)))
        (then
          (if (i32.eq (i32.const -1)
                (memory.grow (i32.sub (i32.add (i32.const 1) (i32.shr_u (global.get $top) (i32.const 16)))
                  (memory.size))))
            (then unreachable))))
      (local.get $at))
    (func (export "keep") (global.set $base (global.get $top)))
    (func (export "forget") (param i32) (global.set $top (global.get $base))))
  (core instance $memory (instantiate $memory))
  (alias core export $memory "memory" (core memory $all))
  (alias core export $memory "cabi_realloc" (core func $allocate))
  (alias core export $memory "forget" (core func $forget))
  {lowered}
  {core}
  (core instance $main (instantiate $main (with "memory" (instance $memory)) {given}))
  (type $code (enum "internal"))
  (type $error (record (field "code" $code) (field "message" string)))
  (type $session (record (field "session-id" string) (field "common-data" (option (list u8)))))
  (type $task (record (field "task-id" string) (field "session-id" string)))
  (func $enter (param "ctx" $session) (result (result (error $error)))
    (canon lift (core func $main "enter") (memory $all) (realloc $allocate) (post-return $forget)))
  (func $leave (param "ctx" $session) (result (result (error $error)))
    (canon lift (core func $main "leave") (memory $all) (realloc $allocate) (post-return $forget)))
  (func $invoke (param "ctx" $task) (param "input" (option (list u8)))
    (result (result (option (list u8)) (error $error)))
    (canon lift (core func $main "invoke") (memory $all) (realloc $allocate) (post-return $forget)))
  ;; Only what is exported by name may be in the type of an export.
  (component $named
    (type $code-in (enum "internal"))
    (import "code" (type $code (eq $code-in)))
    (type $error-in (record (field "code" $code) (field "message" string)))
    (import "error" (type $error (eq $error-in)))
    (type $session-in (record (field "session-id" string) (field "common-data" (option (list u8)))))
    (import "session" (type $session (eq $session-in)))
    (type $task-in (record (field "task-id" string) (field "session-id" string)))
    (import "task" (type $task (eq $task-in)))
    (import "enter" (func $enter (param "ctx" $session) (result (result (error $error)))))
    (import "leave" (func $leave (param "ctx" $session) (result (result (error $error)))))
    (import "invoke" (func $invoke (param "ctx" $task) (param "input" (option (list u8)))
      (result (result (option (list u8)) (error $error)))))
    (type $code-1 (enum "internal"))
    (export $code-out "flame-error-code" (type $code-1))
    (type $error-1 (record (field "code" $code-out) (field "message" string)))
    (export $error-out "flame-error" (type $error-1))
    (type $session-1 (record (field "session-id" string) (field "common-data" (option (list u8)))))
    (export $session-out "session-context" (type $session-1))
    (type $task-1 (record (field "task-id" string) (field "session-id" string)))
    (export $task-out "task-context" (type $task-1))
    (export "on-session-enter" (func $enter) (func (param "ctx" $session-out) (result (result (error $error-out)))))
    (export "on-session-leave" (func $leave) (func (param "ctx" $session-out) (result (result (error $error-out)))))
    (export "on-task-invoke" (func $invoke) (func (param "ctx" $task-out) (param "input" (option (list u8)))
      (result (result (option (list u8)) (error $error-out))))))
  (instance $service (instantiate $named
    (with "code" (type $code)) (with "error" (type $error)) (with "session" (type $session)) (with "task" (type $task))
    (with "enter" (func $enter)) (with "leave" (func $leave)) (with "invoke" (func $invoke))))
  (export "{interface}" (instance $service))
)
"""

ECHO = """
(core module $main
  (import "memory" "memory" (memory 1))
  (func (export "enter") (param i32 i32 i32 i32 i32) (result i32) (i32.const 0))
  (func (export "leave") (param i32 i32 i32 i32 i32) (result i32) (i32.const 0))
  (func (export "invoke") (param i32 i32 i32 i32) (param $some i32) (param $at i32) (param $size i32) (result i32)
    (i32.store8 (i32.const 20) (local.get $some))
    (i32.store (i32.const 24) (local.get $at))
    (i32.store (i32.const 28) (local.get $size))
    (i32.const 16)))
"""

WASI = """
  (import "wasi:io/error@0.2.0" (instance $io-error (export "error" (type (sub resource)))))
  (alias export $io-error "error" (type $io-error-type))
  (import "wasi:io/streams@0.2.0" (instance $streams
    (export "output-stream" (type $stream (sub resource)))
    (alias outer 1 $io-error-type (type $error-0))
    (export "error" (type $error (eq $error-0)))
    (type $stream-error-0 (variant (case "last-operation-failed" (own $error)) (case "closed")))
    (export "stream-error" (type $stream-error (eq $stream-error-0)))
    (export "[method]output-stream.blocking-write-and-flush" (func (param "self" (borrow $stream))
      (param "contents" (list u8)) (result (result (error $stream-error)))))))
  (alias export $streams "output-stream" (type $stream))
  (alias export $streams "[method]output-stream.blocking-write-and-flush" (func $write))
  (import "wasi:cli/stderr@0.2.0" (instance $stderr
    (alias outer 1 $stream (type $stream-0))
    (export "output-stream" (type $stream (eq $stream-0)))
    (export "get-stderr" (func (result (own $stream))))))
  (import "wasi:cli/environment@0.2.0" (instance $environment
    (export "get-environment" (func (result (list (tuple string string)))))
    (export "get-arguments" (func (result (list string))))))
  (import "wasi:cli/exit@0.2.0" (instance $exit (export "exit" (func (param "status" (result))))))
"""
LOWERED = """
  (core func $write (canon lower (func $write) (memory $all) (realloc $allocate)))
  (core func $stderr (canon lower (func $stderr "get-stderr")))
  (core func $variables (canon lower (func $environment "get-environment") (memory $all) (realloc $allocate)))
  (core func $arguments (canon lower (func $environment "get-arguments") (memory $all) (realloc $allocate)))
  (core func $exit (canon lower (func $exit "exit")))
"""
GIVEN = """(with "wasi" (instance (export "write" (func $write)) (export "stderr" (func $stderr))
  (export "variables" (func $variables)) (export "arguments" (func $arguments)) (export "exit" (func $exit))))"""

# Results are at 16: 0 or 1 for an error; at 20 the option or the error's code; at 24 and 28 where the bytes are. Words
# are compared by their first four letters.
ACTING = """
(core module $main
  (import "memory" "memory" (memory 1))
  (import "memory" "cabi_realloc" (func $allocate (param i32 i32 i32 i32) (result i32)))
  (import "memory" "keep" (func $keep))
  (import "wasi" "write" (func $write (param i32 i32 i32 i32)))
  (import "wasi" "stderr" (func $stderr (result i32)))
  (import "wasi" "variables" (func $variables (param i32)))
  (import "wasi" "arguments" (func $arguments (param i32)))
  (import "wasi" "exit" (func $exit (param i32)))
  (data (i32.const 64) "last words\\0a")
  (data (i32.const 96) "left\\0a")
  (data (i32.const 104) "logged\\0a")
  (global $common-some (mut i32) (i32.const 0))
  (global $common (mut i32) (i32.const 0))
  (global $common-size (mut i32) (i32.const 0))
  (global $count (mut i32) (i32.const 0))
  (global $stream (mut i32) (i32.const -1))

  (func $word (param $at i32) (param $size i32) (result i32)
    (if (i32.lt_u (local.get $size) (i32.const 4)) (then (return (i32.const 0))))
    (i32.load align=1 (local.get $at)))
  (func $say (param $at i32) (param $size i32)
    (if (i32.lt_s (global.get $stream) (i32.const 0)) (then (global.set $stream (call $stderr))))
    (call $write (global.get $stream) (local.get $at) (local.get $size) (i32.const 48)))
  (func $spin (loop $more (br $more)))
  (func $recurse (param i32) (result i32)
    (i32.add (call $recurse (i32.add (local.get 0) (i32.const 1))) (local.get 0)))
  (func $output (param $at i32) (param $size i32) (result i32)
    (i32.store8 (i32.const 16) (i32.const 0))
    (i32.store8 (i32.const 20) (i32.const 1))
    (i32.store (i32.const 24) (local.get $at))
    (i32.store (i32.const 28) (local.get $size))
    (i32.const 16))
  (func $fail (param $at i32) (param $size i32) (result i32)
    (i32.store8 (i32.const 16) (i32.const 1))
    (i32.store8 (i32.const 20) (i32.const 0))
    (i32.store (i32.const 24) (local.get $at))
    (i32.store (i32.const 28) (local.get $size))
    (i32.const 16))
  (func $nothing (result i32)
    (i32.store8 (i32.const 16) (i32.const 0))
    (i32.store8 (i32.const 20) (i32.const 0))
    (i32.const 16))
  (func $number (param $at i32) (param $size i32) (result i32)
    (local $value i32)
    (loop $more
      (if (local.get $size) (then
        (local.set $value (i32.add (i32.mul (local.get $value) (i32.const 10))
          (i32.sub (i32.load8_u (local.get $at)) (i32.const 48))))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (local.set $size (i32.sub (local.get $size) (i32.const 1)))
        (br $more))))
    (local.get $value))
  (func $same (param $one i32) (param $other i32) (param $size i32) (result i32)
    (loop $more
      (if (local.get $size) (then
        (local.set $size (i32.sub (local.get $size) (i32.const 1)))
        (br_if $more (i32.eq (i32.load8_u (i32.add (local.get $one) (local.get $size)))
          (i32.load8_u (i32.add (local.get $other) (local.get $size)))))
        (return (i32.const 0)))))
    (i32.const 1))
  (func $variable (param $at i32) (param $size i32) (result i32)
    (local $each i32) (local $left i32)
    (call $variables (i32.const 32))
    (local.set $each (i32.load (i32.const 32)))
    (local.set $left (i32.load (i32.const 36)))
    (loop $more
      (if (local.get $left) (then
        (if (i32.eq (i32.load offset=4 (local.get $each)) (local.get $size)) (then
          (if (call $same (i32.load (local.get $each)) (local.get $at) (local.get $size)) (then
            (return (call $output (i32.load offset=8 (local.get $each)) (i32.load offset=12 (local.get $each))))))))
        (local.set $each (i32.add (local.get $each) (i32.const 16)))
        (local.set $left (i32.sub (local.get $left) (i32.const 1)))
        (br $more))))
    (call $output (i32.const 0) (i32.const 0)))
  (func $zeros (param $size i32) (result i32)
    (local $at i32)
    (local.set $at (call $allocate (i32.const 0) (i32.const 0) (i32.const 1) (local.get $size)))
    (memory.fill (local.get $at) (i32.const 0) (local.get $size))
    (call $output (local.get $at) (local.get $size)))
  (func $log (param $lines i32) (result i32)
    (loop $more
      (if (local.get $lines) (then
        (call $say (i32.const 104) (i32.const 7))
        (local.set $lines (i32.sub (local.get $lines) (i32.const 1)))
        (br $more))))
    (call $output (i32.const 104) (i32.const 6)))
  (func $conduct (result i32)
    (local $each i32)
    (call $arguments (i32.const 32))
    (if (i32.gt_u (i32.load (i32.const 36)) (i32.const 1)) (then
      (local.set $each (i32.add (i32.load (i32.const 32)) (i32.const 8)))
      (local.set $each (call $word (i32.load (local.get $each)) (i32.load offset=4 (local.get $each))))
      (if (i32.eq (local.get $each) {slee}) (then (call $spin)))
      (if (i32.eq (local.get $each) {dies}) (then (call $die (i32.const 1))))))
    (local.get $each))
  (func $die (param $status i32)
    (call $say (i32.const 64) (i32.const 11))
    (call $exit (i32.ne (local.get $status) (i32.const 0))))

  (func (export "enter") (param i32 i32) (param $some i32) (param $at i32) (param $size i32) (result i32)
    (if (i32.eq (call $conduct) {refu}) (then (return (call $fail (i32.const 64) (i32.const 10)))))
    (global.set $common-some (local.get $some))
    (global.set $common (local.get $at))
    (global.set $common-size (local.get $size))
    (call $keep)
    (call $nothing))
  (func (export "leave") (param i32 i32) (param $some i32) (param i32 i32) (result i32)
    (if (i32.eqz (local.get $some)) (then (call $say (i32.const 96) (i32.const 5))))
    (call $nothing))
  (func (export "invoke") (param i32 i32 i32 i32) (param $some i32) (param $at i32) (param $size i32) (result i32)
    (local $word i32)
    (global.set $count (i32.add (global.get $count) (i32.const 1)))
    (if (i32.eqz (local.get $some)) (then (return (call $nothing))))
    (local.set $word (call $word (local.get $at) (local.get $size)))
    (block $space (loop $more
      (br_if $space (i32.eqz (local.get $size)))
      (local.set $size (i32.sub (local.get $size) (i32.const 1)))
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (br_if $more (i32.ne (i32.load8_u (i32.sub (local.get $at) (i32.const 1))) (i32.const 32)))))
    (if (i32.eq (local.get $word) {echo}) (then (return (call $output (local.get $at) (local.get $size)))))
    (if (i32.eq (local.get $word) {size}) (then
      (return (call $zeros (call $number (local.get $at) (local.get $size))))))
    (if (i32.eq (local.get $word) {env}) (then (return (call $variable (local.get $at) (local.get $size)))))
    (if (i32.eq (local.get $word) {log}) (then (return (call $log (call $number (local.get $at) (local.get $size))))))
    (if (i32.eq (local.get $word) {fail}) (then (return (call $fail (local.get $at) (local.get $size)))))
    (if (i32.eq (local.get $word) {exit}) (then (call $die (call $number (local.get $at) (local.get $size)))))
    (if (i32.eq (local.get $word) {hang}) (then (call $spin)))
    (if (i32.eq (local.get $word) {none}) (then (return (call $nothing))))
    (if (i32.eq (local.get $word) {comm}) (then
      (if (i32.eqz (global.get $common-some)) (then (return (call $nothing))))
      (return (call $output (global.get $common) (global.get $common-size)))))
    (if (i32.eq (local.get $word) {coun}) (then
      (i32.store8 (i32.const 128) (i32.add (i32.const 48) (global.get $count)))
      (return (call $output (i32.const 128) (i32.const 1)))))
    (if (i32.eq (local.get $word) {trap}) (then unreachable))
    (if (i32.eq (local.get $word) {divi}) (then
      (return (call $output (i32.const 0) (i32.div_u (i32.const 1) (i32.const 0))))))
    (if (i32.eq (local.get $word) {recu}) (then (return (call $output (i32.const 0) (call $recurse (i32.const 0))))))
    (if (i32.eq (local.get $word) {beyo}) (then (return (call $output (i32.const -8) (i32.const 4)))))
    (call $fail (local.get $at) (local.get $size))))
"""
_WORDS = (
    "echo", "size", "env ", "log ", "fail", "exit", "hang", "none", "common", "count", "trap", "divide", "recurse",
    "beyond", "refuse", "sleep", "dies",
)  # fmt: skip


def component(
    core: str, *, wasi: str = "", lowered: str = "", given: str = "", interface: str = "component:flame/service"
) -> str:
    """The text of a component. `core` is a core module $main that imports "memory" and exports `enter`, `invoke` and
    `leave`; `wasi` imports what it wants besides, `lowered` makes functions for it of that, `given` names them."""
    return _COMPONENT.format(core=core, wasi=wasi, lowered=lowered, given=given, interface=interface)


def binary(text: str) -> bytes:
    """The component as nodes take it."""
    return bytes(wasmtime.wat2wasm(text))


def _acting() -> str:
    numbers = {word.strip()[:4]: f"(i32.const {int.from_bytes(word[:4].encode(), 'little')})" for word in _WORDS}
    return ACTING.format(**numbers)


CONDUCT = component(_acting(), wasi=WASI, lowered=LOWERED, given=GIVEN)
