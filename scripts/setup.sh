# Sourced by the scripts beside it, with `root` set: makes $root/.venv on first use, and again when
# pyproject.toml or constraints.txt changed or the repository moved. Costs a few milliseconds otherwise.

stamp="$root/.venv/.lore-complete" # written last: without it the install was interrupted
pause=8                             # seconds between two lines of an installation

say() { printf 'lore: %s\n' "$*" >&2; }

fingerprint() { printf '%s ' "$root"; cat "$root/pyproject.toml" "$root/constraints.txt" | cksum; }

installed() { [[ -f $stamp && -x $root/.venv/bin/lore-train && $(<"$stamp") == "$(fingerprint)" ]]; }

find_python() {
  local python
  for python in ${LORE_PYTHON:+"$LORE_PYTHON"} python3 python3.13 python3.12 python3.11 python; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      printf '%s' "$python"
      return
    fi
  done
  say 'needs Python 3.11 or newer, none found; install one, or name it in LORE_PYTHON=/path/to/python3'
  return 1
}

in_root() { (cd -- "$root" && "$@"); }

# Runs a command that is silent for minutes and says meanwhile what it does: telling WHAT LOG COMMAND...
telling() {
  local what=$1 log=$2 ticker status=0
  shift 2
  : >"$log"
  tell "$what" "$log" 9>&- &
  ticker=$!
  "$@" >"$log" 2>&1 || status=$?
  kill "$ticker" 2>/dev/null || true
  wait "$ticker" 2>/dev/null || true
  ((status == 0)) || tail -n 20 -- "$log" >&2
  return "$status"
}

# Every few seconds, while the script that waits is alive: the time it took so far and pip's latest step.
tell() {
  local began=$SECONDS last=$SECONDS line
  while kill -0 $$ 2>/dev/null; do
    sleep 0.5
    ((SECONDS - last >= pause)) || continue
    last=$SECONDS
    line=$(grep -E '^ *(Collecting|Downloading|Using cached|Building|Installing|Preparing)' "$2" | tail -n 1 | cut -c 1-100 || true)
    say "$1, $((SECONDS - began)) s so far${line:+: ${line#"${line%%[! ]*}"}}"
  done
}

install_venv() {
  local python
  python=$(find_python) || return 1
  if ! "$python" -c 'import venv, ensurepip' >/dev/null 2>&1; then
    say "$python has no venv module; install it (Debian, Ubuntu: apt install python3-venv)"
    return 1
  fi
  if [[ -f $stamp && $(<"$stamp") == "$root "* ]]; then
    say "dependencies changed: updating $root/.venv"
    rm -f -- "$stamp" || return 1
  else
    say "first use: installing PyTorch and the rest into $root/.venv; this takes some minutes, once"
    rm -rf -- "$root/.venv" || return 1
    telling 'making the environment' "$root/.venv.log" "$python" -m venv "$root/.venv" || return 1
  fi
  telling 'installing' "$root/.venv.log" in_root .venv/bin/python -m pip install --progress-bar=off \
    --disable-pip-version-check -e '.[dev]' -c constraints.txt ||
    { say "the installation failed (all of it: $root/.venv.log); the next start tries again"; return 1; }
  rm -f -- "$root/.venv.log"
  fingerprint >"$stamp.part" && mv -- "$stamp.part" "$stamp"
}

# Two starts on a fresh clone: one installs, the other waits. A lock whose owner died counts as free.
take_lock() {
  local lock="$root/.venv.lock" owner waited=0
  if command -v flock >/dev/null 2>&1; then
    exec 9>"$lock"
    until flock -w "$waited" 9; do
      say 'waiting for another start to finish installing'
      waited=$pause
    done
    return
  fi
  until mkdir -- "$lock.d" 2>/dev/null; do
    [[ -s $lock.d/pid ]] || sleep 1 # its owner may be about to write its number
    owner=$(cat "$lock.d/pid" 2>/dev/null || true)
    if [[ -z $owner ]] || ! kill -0 "$owner" 2>/dev/null; then
      rm -rf -- "$lock.d"
    else
      sleep 0.5
    fi
  done
  echo $$ >"$lock.d/pid"
}

release_lock() {
  if command -v flock >/dev/null 2>&1; then exec 9>&-; else rm -rf -- "$root/.venv.lock.d"; fi
}

ensure_venv() {
  installed && return
  take_lock
  local status=0
  installed || install_venv || status=$?
  release_lock
  return "$status"
}
