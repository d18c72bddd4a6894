#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Clients over RDMA that break every rule of the protocol, one after the other (hostile_peer.cc says which), with a key
# per path and with a key per IO, while an honest client writes and verifies: it does not notice, the server lives, and
# keeps nothing for them.
RNBD_TEST_NEEDS=fio-engine
. "$(dirname "$0")/rnbd.sh"
requires fio
require_fio_engine
rxe_up || fail "no Soft-RoCE"
export IBNBD_E2E_LISTEN=rdma://10.77.0.1
memory_kib() { awk '/^VmRSS/ {print $2}' "/proc/$1/status"; }
nobody() { [ "$(server_stat chunk_memory)" = 0 ]; }
bounded() { [ $(($(memory_kib "$server_pid") - before)) -lt 65536 ]; }

for when in never always; do
  truncate -s 64M "$work/vol.img"
  start_server --invalidate "$when" --export "vol=$work/vol.img" --export bait=mem:64M
  : >"$work/stop"
  (
    rounds=0 late=0
    while [ -e "$work/stop" ] || [ $rounds = 0 ]; do
      run_fio "honest-$when" --ioengine="external:$engine" --thread --direct=1 --uri="$uri/vol" --rw=randwrite --bsrange=4k-128k \
        --blockalign=4k --iodepth=8 --size=32M --io_size=8M --fsync=32 --verify=crc32c --do_verify=1 && rounds=$((rounds + 1)) && continue
      # In a flood of connects an emulated guest may take longer than 10 s for one of them.  IO must not notice.
      grep -q "not established in time" "$work/honest-$when.log" && [ $((++late)) -le 3 ] || exit 1
    done
    echo "$rounds honest rounds, $late connects that took too long"
  ) &
  honest=$!
  # What takes most memory first: it may be kept for the next, and must not grow any more.
  timeout 60 ibnbd-hostile-peer "$uri/bait" 1 "a flood" >"$work/hostile.log" 2>&1 || fail "$when, warm: $(tail -n 4 "$work/hostile.log")"
  before=$(memory_kib "$server_pid")
  timeout 150 ibnbd-hostile-peer "$uri/bait" "${IBNBD_HOSTILE_ROUNDS:-1}" >"$work/hostile.log" 2>&1 || fail "$when: $(tail -n 4 "$work/hostile.log")"
  rm "$work/stop"
  wait "$honest" || fail "$when: the honest client was disturbed"
  alive "$server_pid" || fail "$when: the server died"
  [ "$(grep -c ': ok$' "$work/hostile.log")" -ge 12 ] || fail "$when: too little was tried: $(cat "$work/hostile.log")"
  wait_for 50 nobody || fail "$when: memory is kept for nobody: $(server_stat chunk_memory)"
  wait_for 10 bounded || fail "$when: the server grew from $before to $(memory_kib "$server_pid") KiB"
  echo "$when: server from $before to $(memory_kib "$server_pid") KiB, $(server_stat paths_broken) paths ended"
  stop "$server_pid"
done
kernel_is_well
