# shellcheck shell=bash
# Sourced by run_example.sh and run_tests.sh: an environment with the given requirements.
#
#   source scripts/setup_env.sh requirements.txt [more.txt …]
#
# Uses the active virtual environment if there is one, else makes .venv. A finished set-up is
# known by a stamp of the requirements' text, so that asking again costs nothing.

if [ -z "${VIRTUAL_ENV:-}" ]; then
    [ -x .venv/bin/python ] || python3 -m venv .venv
    source .venv/bin/activate
fi
stamp="$VIRTUAL_ENV/.odysseus-$(cat requirements*.txt "$@" | sha256sum | cut -c1-16)"
if [ ! -e "$stamp" ]; then
    for file in "$@"; do
        if [ "$file" = requirements-gpu.txt ]; then
            # These build against the torch that is installed by now.
            pip install --quiet --no-build-isolation -r "$file" ||
                echo "GPU extras did not install; going on with PyTorch's own kernels" >&2
        elif [ "$file" = requirements-torchtitan.txt ]; then
            pip install --quiet --no-deps -r "$file"
        else
            pip install --quiet -r "$file"
        fi
    done
    touch "$stamp"
fi
