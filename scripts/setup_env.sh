# shellcheck shell=bash
# Sourced by run_example.sh and run_tests.sh: an environment with the given requirements.
#
#   source scripts/setup_env.sh requirements.txt [more.txt …]
#
# Uses the active virtual environment if there is one, else makes .venv. Each file that is installed
# leaves a stamp of the requirements' text, so that asking again costs nothing, and a file that did
# not install is tried again.

if [ -z "${VIRTUAL_ENV:-}" ]; then
    [ -x .venv/bin/python ] || python3 -m venv .venv
    source .venv/bin/activate
fi
for file in "$@"; do
    stamp="$VIRTUAL_ENV/.odysseus-$(cat requirements*.txt | sha256sum | cut -c1-16)-$file"
    [ ! -e "$stamp" ] || continue
    case "$file" in
    requirements-gpu.txt)
        if ! pip install --quiet -r "$file"; then
            echo "$file did not install; going on with PyTorch's own kernels" >&2
            continue
        fi
        ;;
    requirements-torchtitan.txt) pip install --quiet --no-deps -r "$file" ;;
    *) pip install --quiet -r "$file" ;;
    esac
    touch "$stamp"
done
