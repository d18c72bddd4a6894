/* SPDX-License-Identifier: Apache-2.0
 *
 * The public header as C99: compiled with -std=c99 -pedantic -Wall -Wextra -Werror, nothing included before.
 * Every call is named once, so that a symbol that is not exported fails to link.
 */
#include <ibnbd/ibnbd.h>

#include <stdio.h>
#include <string.h>

typedef void (*any_function)(void);

static const any_function kCalls[] = {
    (any_function)ibnbd_version,
    (any_function)ibnbd_error_message,
    (any_function)ibnbd_set_log,
    (any_function)ibnbd_session_open,
    (any_function)ibnbd_session_close,
    (any_function)ibnbd_session_get_info,
    (any_function)ibnbd_session_ping,
    (any_function)ibnbd_session_list,
    (any_function)ibnbd_session_queue,
    (any_function)ibnbd_uri_export,
    (any_function)ibnbd_device_open,
    (any_function)ibnbd_device_close,
    (any_function)ibnbd_device_get_info,
    (any_function)ibnbd_device_list_ios,
    (any_function)ibnbd_device_refresh,
    (any_function)ibnbd_device_set_fail_after,
    (any_function)ibnbd_buffer_alloc,
    (any_function)ibnbd_buffer_register,
    (any_function)ibnbd_buffer_data,
    (any_function)ibnbd_buffer_size,
    (any_function)ibnbd_buffer_fd,
    (any_function)ibnbd_buffer_free,
    (any_function)ibnbd_submit,
    (any_function)ibnbd_queue_poll,
    (any_function)ibnbd_queue_flush,
    (any_function)ibnbd_queue_wait,
    (any_function)ibnbd_queue_fd,
    (any_function)ibnbd_queue_prepare_sleep,
    (any_function)ibnbd_queue_wake,
    (any_function)ibnbd_pread,
    (any_function)ibnbd_pwrite,
    (any_function)ibnbd_flush,
    (any_function)ibnbd_discard,
    (any_function)ibnbd_write_zeroes,
};

int main(void) {
  struct ibnbd_session_options session_options = IBNBD_SESSION_OPTIONS_INIT;
  struct ibnbd_device_options device_options = IBNBD_DEVICE_OPTIONS_INIT;
  char name[16];
  size_t i;

  for (i = 0; i < sizeof kCalls / sizeof kCalls[0]; ++i) {
    if (!kCalls[i]) return 1;
  }
  if (session_options.struct_size != sizeof session_options || session_options.queue_count != 1) return 2;
  if (device_options.struct_size != sizeof device_options || device_options.fail_after_ms != -1) return 3;
  if (session_options.reserved[2] != 0 || device_options.reserved[3] != 0) return 4;
  if (ibnbd_uri_export("tcp://host/a%20b", name, sizeof name) != 0 || strcmp(name, "a b") != 0) return 5;
  if (ibnbd_error_message()[0] != '\0') return 6;
  if (ibnbd_session_open(NULL, NULL, NULL) >= 0 || ibnbd_error_message()[0] == '\0') return 7;
  printf("libibnbd %s\n", ibnbd_version());
  return 0;
}
