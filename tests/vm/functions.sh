# SPDX-License-Identifier: Apache-2.0
# For tests that run in the guest of ci/vm/run: those of the end-to-end tests, and the lab's.
# shellcheck shell=bash
if [ "${IBNBD_IN_GUEST:-}" != 1 ]; then
  # Started outside: the same test, in a guest, or in two (IBNBD_VM_RUN=run-two).  What ctest does.
  here=$(cd "$(dirname "$0")" && pwd)
  [ "${IBNBD_LONG:-}" != 1 ] || VM_TIMEOUT=$((${VM_TIMEOUT:-300} * 10))
  exec "$here/../../ci/vm/${IBNBD_VM_RUN:-run}" --timeout "${VM_TIMEOUT:-300}" ${VM_SMP:+--smp "$VM_SMP"} -- "$here/${0##*/}" "$@"
fi
. "$(dirname "${BASH_SOURCE[0]}")/../e2e/functions.sh"
. "$VM_LIB"

# rxe_two_ways: Soft-RoCE over the wire between veth0 (10.78.1.1) and veth1 (10.78.1.2), which can be cut, and within
# rdma0 (10.77.0.1).  losing "loss 100%", losing "delay 0us": cuts the wire, and mends it.
rxe_two_ways() {
  local device
  requires tc
  rxe_veth || fail "no Soft-RoCE"
  modprobe dummy numdummies=0
  ip link add rdma0 type dummy
  ip link set rdma0 mtu 9000 up
  ip addr add 10.77.0.1/24 dev rdma0
  rdma link add rxe2 type rxe netdev rdma0 && until_true 10 gid_ready rxe2 || fail "no third Soft-RoCE device"
  for device in veth0 veth1; do tc qdisc add dev "$device" root netem delay 0us || fail "no netem"; done
}
losing() {
  local device
  for device in veth0 veth1; do
    # shellcheck disable=SC2086  # Words.
    tc qdisc change dev "$device" root netem $1 || fail "netem $1"
  done
}
