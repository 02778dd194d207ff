# Installs what Reeve's scripts need and this machine lacks. Sourced, by ops/up and ops/test; bash 3.2 will do.
#
#   me=ops/up; . ops/lib/install.sh; install_missing compiler postgres redis
#
# Debian and Ubuntu by apt; elsewhere it names the packages and stops. No system service is started or left enabled by
# what is installed here: the development stack and the tests run servers of their own.
# shellcheck shell=bash

postgres_major_min=15
redis_major_min=7

say() { printf '%s: %s\n' "${me:?set by the script that sources this}" "$*" >&2; }
die() { say "$*"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# The first number of "postgres (PostgreSQL) 15.14 (Debian ...)", "Redis server v=7.0.15 ..." or "5:7.0.15-1".
first_number() { sed -nE 's/^([0-9]+:|.*\(PostgreSQL\) |.* v=)?([0-9]+).*/\2/p' | head -n 1; }

# Where an installed PostgreSQL has its programs; fails when there is none that will do.
postgres_dir() {
  if [[ -n ${REEVE_PG_BIN:-} ]]; then
    printf '%s' "$REEVE_PG_BIN" # reeve-dev checks it, and says what is wrong with it
    return
  fi
  local program major
  for program in "$(command -v postgres || true)" /usr/lib/postgresql/*/bin/postgres /usr/pgsql-*/bin/postgres \
    /opt/homebrew/opt/postgresql@*/bin/postgres /usr/local/opt/postgresql@*/bin/postgres \
    /home/linuxbrew/.linuxbrew/opt/postgresql@*/bin/postgres /Applications/Postgres.app/Contents/Versions/*/bin/postgres; do
    [[ -x $program ]] || continue
    major=$("$program" --version | first_number)
    if ((${major:-0} >= postgres_major_min)); then
      printf '%s' "${program%/*}"
      return
    fi
  done
  return 1
}

redis_found() {
  local program major
  for program in redis-server valkey-server; do
    have "$program" || continue
    major=$("$program" --version | first_number)
    ((${major:-0} >= redis_major_min)) && return 0
  done
  return 1
}

# Is one of the things that install_missing knows here?
found() {
  case $1 in
    compiler) have cc ;;
    postgres) postgres_dir >/dev/null ;;
    redis) redis_found ;;
    node) have node && have npm ;;
    python) have python3 && python3 -c 'import ensurepip, venv' 2>/dev/null ;;
    faketime) compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1' >/dev/null || [[ -e /usr/lib/faketime/libfaketimeMT.so.1 ]] ;;
    *) die "install_missing does not know $1" ;;
  esac
}

# What apt would install of a package: its major version, or 0.
candidate_major() {
  local major
  major=$(apt-cache policy "$1" | sed -n 's/^ *Candidate: //p' | first_number)
  printf '%s' "${major:-0}"
}

postgres_package() {
  local newest
  newest=$(apt-cache search --names-only '^postgresql-[0-9]+$' | sed -E 's/^postgresql-([0-9]+).*/\1/' | sort -n | tail -n 1)
  ((${newest:-0} >= postgres_major_min)) ||
    die "this system's packages have no PostgreSQL $postgres_major_min or later; add PostgreSQL's own apt repository, or set REEVE_PG_BIN"
  printf 'postgresql-%s' "$newest"
}

redis_package() {
  local package
  for package in redis-server valkey-server; do
    if (($(candidate_major "$package") >= redis_major_min)); then
      printf '%s' "$package"
      return
    fi
  done
  die "this system's packages have no Redis $redis_major_min or later and no Valkey; install one by hand"
}

as_root() { if ((EUID == 0)); then "$@"; else sudo "$@"; fi; }
apt_install() { as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"; }
installed() { [[ $(dpkg-query -W -f '${Status}' "$1" 2>/dev/null) == 'install ok installed' ]]; }

guard=/usr/sbin/policy-rc.d
createcluster=/etc/postgresql-common/createcluster.conf
saved_suffix=.before-reeve
mark='made by Reeve for the time of an installation'

# Puts back what install_by_apt changed for the time of the installation.
restore() {
  local file
  ! grep -qs "$mark" "$guard" || as_root rm -f "$guard"
  for file in "$guard" "$createcluster"; do
    [[ ! -e $file$saved_suffix ]] || as_root mv "$file$saved_suffix" "$file"
  done
}

# In a subshell, so that its trap runs although the script may end with exec.
install_by_apt() (
  trap restore EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  restore # an attempt that was killed may have left its changes

  as_root apt-get update
  packages=()
  services=() # that come with what is new here; one that was installed before is its administrator's
  for thing in "$@"; do
    case $thing in
      compiler) packages+=(gcc libc6-dev) ;;
      postgres) packages+=("$(postgres_package)") ;;
      redis)
        redis=$(redis_package)
        packages+=("$redis")
        installed "$redis" || services+=("$redis")
        ;;
      node)
        have node || packages+=(nodejs)
        have npm || packages+=(npm)
        ;;
      python) packages+=(python3 python3-venv) ;;
      faketime) packages+=(libfaketime) ;;
    esac
  done
  say "installing: ${packages[*]}"

  # The packages of servers start them; this file tells invoke-rc.d not to.
  [[ ! -e $guard ]] || as_root mv "$guard" "$guard$saved_suffix"
  printf '#!/bin/sh\n# %s\nexit 101\n' "$mark" | as_root tee "$guard" >/dev/null
  as_root chmod 755 "$guard"

  # Debian makes a cluster of its own with the server, unless told not to before. Where postgresql-common is there
  # already, its administrator has decided.
  if [[ " $* " == *' postgres '* ]] && ! installed postgresql-common; then
    apt_install postgresql-common
    as_root cp -p "$createcluster" "$createcluster$saved_suffix"
    printf 'create_main_cluster = false\n' | as_root tee "$createcluster" >/dev/null
  fi
  apt_install "${packages[@]}"

  # The guard keeps a service from starting now, not at the next boot.
  for service in ${services[@]+"${services[@]}"}; do
    ! have systemctl || as_root systemctl disable "$service" || say "could not disable the service $service"
  done
)

# Puts cargo into PATH, or says where Rust is to be had.
find_cargo() {
  if [[ -x ${CARGO_HOME:-$HOME/.cargo}/bin/cargo ]]; then PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH; fi
  have cargo || die "Rust is missing. Get it from https://rustup.rs, open a new shell and run $me again."
}

# Installs those of the named things (compiler postgres redis node python faketime) that are not here.
install_missing() {
  local thing missing=()
  for thing in "$@"; do found "$thing" || missing+=("$thing"); done
  ((${#missing[@]})) || return 0
  have apt-get || die "missing: ${missing[*]}. Install, then run $me again:
  Fedora   gcc postgresql-server postgresql-contrib valkey nodejs npm python3 libfaketime
  Arch     gcc postgresql valkey nodejs npm python libfaketime
  macOS    xcode-select --install; brew install postgresql@17 redis node python libfaketime
  (PostgreSQL $postgres_major_min or later, Redis $redis_major_min or later; neither needs to run as a service;
  node, npm, python and libfaketime are for the tests alone)"
  ((EUID == 0)) || have sudo || die "missing: ${missing[*]}, and there is no sudo: run $me as root once, or install them by hand."
  install_by_apt "${missing[@]}"
}
