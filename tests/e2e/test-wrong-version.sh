#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A wrong magic or version is refused with the error that the protocol names, and disturbs nobody.
. "$(dirname "$0")/functions.sh"
requires python3

start_server --export m=mem:16M
python3 "$here/rtrs_hello.py" "$port" || fail "an answer that the documents do not give"
ibnbd-client show "$uri/m" >/dev/null || fail "no export after the strangers"
stop "$server_pid"
