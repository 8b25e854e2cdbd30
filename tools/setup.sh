#!/usr/bin/env bash
# Makes the virtual environment $1 with the package and the pinned development tools.
# Works where Debian's python3-venv is missing: virtualenv, uv, or pip into a plain directory do as well.
set -euo pipefail
venv=$1
python=${PYTHON:-python3}

command -v "$python" >/dev/null || { echo "make: '$python' is not found. Install Python 3.11 or newer, or say which: make PYTHON=python3.12" >&2; exit 2; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "make: '$python' is $("$python" --version), but PPSS needs Python 3.11 or newer. Say which: make PYTHON=python3.12" >&2
    exit 2
}
if [ ! -x "$venv/bin/python" ]; then
    rm -rf "$venv"
    if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        "$python" -m venv "$venv"
    elif command -v uv >/dev/null; then
        uv venv --quiet --seed --python "$python" "$venv"
    elif "$python" -m virtualenv --version >/dev/null 2>&1; then
        "$python" -m virtualenv --quiet "$venv"
    elif "$python" -m pip --version >/dev/null 2>&1; then
        # venv without ensurepip, and the outer pip to fill it.
        "$python" -m venv --without-pip "$venv"
        "$python" -m pip --python "$venv/bin/python" install --quiet pip
    else
        rm -rf "$venv"
        echo "make: this Python can make no virtual environment. Type: sudo apt-get install python3-venv" >&2
        exit 2
    fi
fi
echo "installing into $venv ..." >&2
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r requirements.lock
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
