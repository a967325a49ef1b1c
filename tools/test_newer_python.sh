#!/bin/sh
# Runs the unit tests with the newest other Python of this machine that Flame names in its classifiers, if there is one.
# BIN: where the environment's own Python is. The suites of the shims, which start hundreds of programs, are left out.
set -eu

own=$("$BIN/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
for version in 3.13 3.12 3.11; do
    [ "$version" != "$own" ] || continue
    for python in "python$version" "$HOME/.pyenv/versions/$version".*/bin/python; do
        "$python" -c 'import ensurepip, sqlite3, ssl' >/dev/null 2>&1 || continue
        folder=".venv-$version"
        if [ ! -e "$folder/.stamp" ] || [ pyproject.toml -nt "$folder/.stamp" ]; then
            echo "installing Flame and the development tools for Python $version into $folder"
            "$python" -m venv "$folder"
            PIP_DISABLE_PIP_VERSION_CHECK=1 "$folder/bin/python" -m pip install --quiet \
                --editable ".[certs,speed,cache,packages,dev]"
            touch "$folder/.stamp"
        fi
        exec "$folder/bin/python" -m pytest -q tests/unit \
            --ignore=tests/unit/test_shims_conformance.py --ignore=tests/unit/test_shims_wasm.py
    done
done
echo "no other Python is here that Flame is for: its tests ran with $own only"
