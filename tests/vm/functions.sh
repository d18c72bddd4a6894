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
