#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The search path gives each session its own directory and lets nobody out of it.
. "$(dirname "$0")/functions.sh"
requires nbdinfo

mkdir -p "$work/volumes/alice/sub" "$work/volumes/bob"
truncate -s 1M "$work/volumes/alice/disk.img" "$work/volumes/alice/sub/deep.img" "$work/volumes/bob/secret.img" "$work/outside.img"
ln -s "$work/outside.img" "$work/volumes/alice/link.img"
ln -s disk.img "$work/volumes/alice/inner.img"
start_server --search-path "$work/volumes/%SESSNAME%"
as() { local who=$1; shift; ibnbd-client show --session-name "$who" "$uri/$1"; }
as alice disk.img >/dev/null || fail "alice cannot open her own"
as alice sub/deep.img >/dev/null || fail "alice cannot open what is deeper"
as alice inner.img >/dev/null || fail "a link that stays inside"
expect_fail 'secret.img: No such file' as alice secret.img
expect_fail 'disk.img: No such file' as bob disk.img
expect_fail 'passwd: (No such file|Operation not permitted|Invalid)' as alice /etc/passwd
expect_fail 'outside.img: (No such file|Operation not permitted|Invalid)' as alice "$work/outside.img"
expect_fail 'link.img: Operation not permitted' as alice link.img
expect_fail 'secret.img: Invalid' as alice ../bob/secret.img
expect_fail 'secret.img: Invalid' as alice sub/../../bob/secret.img
expect_fail 'open sub: Invalid' as alice sub
start_bridge --session-name alice "$uri/disk.img"
wait_for 20 nbdinfo --size "$(nbd_uri)" || fail "a bridge cannot open what is alice's"
stop "$bridge_pid"
expect_fail 'session name' as .. alice/disk.img
stop "$server_pid"
