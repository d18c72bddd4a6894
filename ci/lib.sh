# SPDX-License-Identifier: Apache-2.0
# Shared by the scripts of ci/: steps with a name and a duration, packages, the summary.
# shellcheck shell=bash

# step "what happens" command...   Output goes to a log that is shown only when the command fails.
step() {
  local name=$1 log start rc=0
  shift
  log=$(mktemp "${TMPDIR:-/tmp}/ibnbd-step.XXXXXX")
  start=$SECONDS
  printf '%-58s' "$name ..."
  "$@" >"$log" 2>&1 </dev/null || rc=$?
  if [ "$rc" -eq 0 ]; then
    printf ' ok   %4ds\n' $((SECONDS - start))
  else
    printf ' FAILED %3ds\n' $((SECONDS - start))
    tail -n "${STEP_TAIL:-60}" "$log" >&2
  fi
  rm -f "$log"
  return "$rc"
}

PACKAGES_BUILD="build-essential cmake ninja-build pkg-config git ca-certificates
  liburing-dev libabsl-dev libcli11-dev libtomlplusplus-dev libspdlog-dev nlohmann-json3-dev
  libsystemd-dev libibverbs-dev librdmacm-dev libnl-3-dev libnl-genl-3-dev"
PACKAGES_DEMO="nbdkit libnbd-bin qemu-utils e2fsprogs fio python3"
PACKAGES_TEST="libgtest-dev libgmock-dev clang-format-14 python3-libnbd iproute2 strace dpkg-dev
  zlib1g-dev util-linux procps"
# The lab (ci/vm) and what its tests use in the guest, which sees the host's programs.  bc and libelf1 are for
# ci/vm/build-rnbd.
PACKAGES_VM="bc dmsetup libelf1 qemu-system-x86 busybox-static kmod cpio xz-utils rdma-core ibverbs-providers ibverbs-utils rdmacm-utils perftest
  xfsprogs e2fsprogs nbd-client iputils-ping iproute2 procps fio udev"

# install_packages NAME...: installs those that are missing; says what to do when it may not.
install_packages() {
  local missing=() name
  for name in "$@"; do
    dpkg-query -W -f='${Status}' "$name" 2>/dev/null | grep -q 'ok installed' || missing+=("$name")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  local sudo=""
  if [ "$(id -u)" -ne 0 ]; then
    if command -v sudo >/dev/null; then
      sudo="sudo"
    else
      echo "missing packages: ${missing[*]}; install them as root: apt-get install ${missing[*]}"
      return 1
    fi
  fi
  $sudo apt-get update -qq || return 1
  $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
}

# The number of compilers to run: one per CPU, but no more than memory carries (1.5 GiB each).
job_count() {
  local cpus mem_gib
  cpus=$(nproc)
  mem_gib=$(awk '/MemAvailable/ {print int($2 / 1048576)}' /proc/meminfo)
  local by_mem=$((mem_gib * 2 / 3))
  [ "$by_mem" -lt 1 ] && by_mem=1
  echo $((cpus < by_mem ? cpus : by_mem))
}
