"""Components of WebAssembly as instances: the programs that compile one, and that run one (docs/wasm.md)."""
