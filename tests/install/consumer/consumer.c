/* SPDX-License-Identifier: Apache-2.0
 * A program of a stranger, in C. */
#include <ibnbd/ibnbd.h>
#include <stdio.h>

int main(void) {
  ibnbd_session *session;
  if (ibnbd_session_open("nonsense", NULL, &session) >= 0) return 1;
  printf("C: libibnbd %s says: %s\n", ibnbd_version(), ibnbd_error_message());
  return 0;
}
