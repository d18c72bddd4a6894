# SPDX-License-Identifier: Apache-2.0
# For scripts that run in the guest: `. "$VM_LIB"`.
# shellcheck shell=bash

# until_true SECONDS command...: polls.
until_true() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $deadline ] || return 1
    sleep 0.1
  done
}

rdma_modules() { modprobe -a crc32_generic ib_uverbs rdma_cm rdma_ucm rdma_rxe; }
gid_ready() { grep -q ffff: "/sys/class/infiniband/$1/ports/1/gids/"* 2>/dev/null; }

# rxe_up [ADDRESS]: Soft-RoCE on a dummy device: both ends of every connection in this guest.
rxe_up() {
  local address=${1:-10.77.0.1}
  rdma_modules || return 1
  modprobe dummy numdummies=0 2>/dev/null
  ip link add rdma0 type dummy
  ip link set rdma0 mtu 9000 up
  ip addr add "$address/24" dev rdma0
  ip -6 addr add fd77::1/64 dev rdma0 nodad
  rdma link add rxe0 type rxe netdev rdma0 || return 1
  until_true 10 gid_ready rxe0
}

# rxe_veth [WIRE]: two Soft-RoCE devices with a wire between them that can lose, delay and be cut (tc qdisc, ip link):
# rxe0 is 10.78.1.1 on veth0, rxe1 is 10.78.1.2 on veth1.  With WIRE 1 it is another one: rxe2, 10.78.2.1 on veth2, and so
# on.  rxe of this kernel listens in the first network namespace only, so rules send packets to our own other address
# over the wire.
rxe_veth() {
  local wire=${1:-0} device
  local near=veth$((2 * wire)) far=veth$((2 * wire + 1)) here=10.78.$((wire + 1)).1 there=10.78.$((wire + 1)).2
  rdma_modules || return 1
  ip link add "$near" type veth peer name "$far"
  for device in "$near" "$far"; do ip link set "$device" mtu 9000; done
  for device in all default "$near" "$far"; do
    echo 1 >"/proc/sys/net/ipv4/conf/$device/accept_local"
    echo 0 >"/proc/sys/net/ipv4/conf/$device/rp_filter"
    echo 1 >"/proc/sys/net/ipv4/conf/$device/arp_ignore"
  done
  ip addr add "$here/32" dev "$near"
  ip addr add "$there/32" dev "$far"
  veth_up "$wire"
  # "to": rdma_cm looks the way back up as a packet that comes in, and it must leave by this device.
  ip rule add pref 1 iif "$near" to "$here" lookup local
  ip rule add pref 1 iif "$far" to "$there" lookup local
  ip rule add pref 2 to "$there" lookup $((102 + 2 * wire))
  ip rule add pref 2 to "$here" lookup $((101 + 2 * wire))
  ip rule add pref 3 lookup local 2>/dev/null # Not a second time.
  ip rule del pref 0 2>/dev/null
  # One CPU's backlog each: packets that overtake each other look like loss to rxe.
  for device in "$near" "$far"; do echo 1 >"/sys/class/net/$device/queues/rx-0/rps_cpus"; done
  rdma link add "rxe$((2 * wire))" type rxe netdev "$near" && rdma link add "rxe$((2 * wire + 1))" type rxe netdev "$far" || return 1
  until_true 10 gid_ready "rxe$((2 * wire))" && until_true 10 gid_ready "rxe$((2 * wire + 1))" || return 1
  # The first address resolution must not be rdma_cm's.
  until_true 5 ping -c 1 -W 1 "$there" && until_true 5 ping -c 1 -W 1 -I "$there" "$here"
}
# veth_up WIRE, veth_down WIRE: as if the cable were plugged and pulled.  The kernel forgets the routes of a device that is down.
veth_up() {
  local near=veth$((2 * $1)) far=veth$((2 * $1 + 1)) here=10.78.$(($1 + 1)).1 there=10.78.$(($1 + 1)).2
  ip link set "$near" up && ip link set "$far" up &&
    ip route replace "$there/32" dev "$near" src "$here" table $((102 + 2 * $1)) &&
    ip route replace "$here/32" dev "$far" src "$there" table $((101 + 2 * $1))
}
veth_down() { ip link set "veth$((2 * $1))" down && ip link set "veth$((2 * $1 + 1))" down; }

# For ci/vm/run-two.  Soft-RoCE on the wire between the two guests, with the address of this $ROLE.
rxe_eth() {
  local address=10.78.0.1 peer=10.78.0.2
  [ "$ROLE" = server ] || address=10.78.0.2 peer=10.78.0.1
  rdma_modules || return 1
  modprobe virtio_net
  until_true 10 test -e /sys/class/net/eth0 || return 1
  ip link set eth0 mtu 9000 up
  ip addr add "$address/24" dev eth0
  rdma link add rxe0 type rxe netdev eth0 || return 1
  until_true 10 gid_ready rxe0 || return 1
  # The other guest may still be booting; and the first address resolution must not be rdma_cm's.
  until_true 60 ping -c 1 -W 1 "$peer"
}

# tell NAME / await SECONDS NAME: one guest waits for the other.  await is false after the time, and as soon as the
# other guest has ended without saying NAME.
tell() { mkdir -p "$IBNBD_MEETING/told-$1"; }
await() {
  local other=client ended
  [ "$ROLE" = server ] || other=server
  local deadline=$((SECONDS + $1))
  while :; do
    ended=0
    [ ! -d "$IBNBD_MEETING/$other-ended" ] || ended=1
    [ ! -d "$IBNBD_MEETING/told-$2" ] || return 0
    [ $ended = 0 ] && [ $SECONDS -lt $deadline ] || return 1
    sleep 0.1
  done
}

# wire up|down: the carrier of both guests' network cards, as if the cable were pulled and plugged.  One guest only may
# say it.
wire_requests=0
wire() {
  wire_requests=$((wire_requests + 1))
  mkdir "$IBNBD_MEETING/wire-$wire_requests-$1"
  until_true 20 test -d "$IBNBD_MEETING/done-$wire_requests"
}

# memory_disk INDEX MEBIBYTES [BLOCK_SIZE]: /dev/nullbINDEX, backed by memory.
memory_disk() {
  local dir=/sys/kernel/config/nullb/nullb$1
  modprobe null_blk nr_devices=0 && mkdir "$dir" || return 1
  echo "$2" >"$dir/size"
  echo 1 >"$dir/memory_backed"
  echo "${3:-512}" >"$dir/blocksize"
  echo 2 >"$dir/submit_queues"
  echo 0 >"$dir/irqmode"
  echo 1 >"$dir/discard"
  echo 1 >"$dir/power"
  until_true 5 test -b "/dev/nullb$1"
}

# stuck_tasks: those in uninterruptible sleep, twice a second apart: prints them, false if there is none.
stuck_tasks() {
  local first second
  first=$(ps -eo state,pid,args | awk '$1 == "D" && $3 !~ /^\[/ { print $2 }' | sort)
  [ -n "$first" ] || return 1
  sleep 2
  second=$(ps -eo state,pid,args | awk '$1 == "D" && $3 !~ /^\[/ { print $2 }' | sort)
  comm -12 <(echo "$first") <(echo "$second") | grep . || return 1
}
