#!/usr/bin/env bash
# Makes the virtual environment $1 with the package and the pinned development tools, or brings it up to date.
# Debian without python3-venv can't fill one by itself: then virtualenv, a pip outside of it or uv do.
set -euo pipefail
venv=$1
python=${PYTHON:-python3}
unfinished=$venv/.unfinished

stop() {
    printf 'make: %s\n' "$*" >&2
    exit 2
}

make_venv() {
    if "$python" -c 'from ensurepip import bootstrap; from venv import create' 2>/dev/null; then
        "$python" -m venv "$venv"
    elif "$python" -c 'from virtualenv import cli_run' 2>/dev/null; then
        "$python" -m virtualenv --quiet "$venv"
    elif command -v virtualenv >/dev/null; then
        virtualenv --quiet --python "$python" "$venv"
    elif "$python" -c 'from pip import main; from venv import create' 2>/dev/null; then
        "$python" -m venv --without-pip "$venv"
        PIP_ROOT_USER_ACTION=ignore "$python" -m pip install --quiet --disable-pip-version-check pip \
            --target "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
    elif command -v uv >/dev/null; then
        uv venv --quiet --seed --allow-existing --python "$python" "$venv"
    else
        [ "$(id -u)" -eq 0 ] && sudo="" || sudo="sudo "
        stop "'$python' can't make a virtual environment. Type this, then make again: ${sudo}apt-get install -y python3-venv"
    fi
}

command -v "$python" >/dev/null ||
    stop "'$python' is not found. Install Python 3.11 or newer, or say where one is: make demo PYTHON=/path/to/python3"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    stop "'$python' is $("$python" --version 2>&1), but PPSS needs 3.11 or newer. Say where one is: make demo PYTHON=/path/to/python3"

echo "setting up $venv ..." >&2
if [ -e "$unfinished" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    rm -rf "$venv"
fi
mkdir -p "$venv"
touch "$unfinished" # what was interrupted may look complete to pip: next time it begins anew
[ -x "$venv/bin/python" ] || make_venv

install() {
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@" ||
        stop "pip could not install what PPSS needs (see above). Is this machine on the network? Mend it, then make again."
}
install -r requirements.lock
install --no-deps --no-build-isolation -e .
rm "$unfinished"
