# SPDX-License-Identifier: Apache-2.0
# For tests that kill daemons again and again: a ublk driver that survives it, see ci/vm/build-ublk, which is run on the
# host first; then everything of functions.sh and, in the guest, load_ublk.
# shellcheck shell=bash
if [ "${IBNBD_IN_GUEST:-}" != 1 ] && [ -z "${IBNBD_UBLK_MODULE:-}" ]; then
  if IBNBD_UBLK_MODULE=$("$(dirname "${BASH_SOURCE[0]}")/../../ci/vm/build-ublk"); then
    export IBNBD_UBLK_MODULE
  else
    echo "with the kernel's own ublk driver: $IBNBD_UBLK_MODULE"
    unset IBNBD_UBLK_MODULE
  fi
fi
. "$(dirname "${BASH_SOURCE[0]}")/functions.sh"
load_ublk() { if [ -n "${IBNBD_UBLK_MODULE:-}" ]; then insmod "$IBNBD_UBLK_MODULE"; else modprobe ublk_drv; fi; }
