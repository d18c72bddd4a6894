#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The search path gives each session its own directory and lets nobody out of it.
. "$(dirname "$0")/functions.sh"

mkdir -p "$work/volumes/alice/sub" "$work/volumes/bob"
truncate -s 1M "$work/volumes/alice/disk.img" "$work/volumes/alice/sub/deep.img" "$work/volumes/bob/secret.img" "$work/outside.img"
ln -s "$work/outside.img" "$work/volumes/alice/link.img"
ln -s disk.img "$work/volumes/alice/inner.img"
start_server --search-path "$work/volumes/%SESSNAME%"
as() { local who=$1; shift; ibnbd-client --session-name "$who" show "$uri/$1"; }
as alice disk.img >/dev/null || fail "alice cannot open her own"
as alice sub/deep.img >/dev/null || fail "alice cannot open what is deeper"
as alice inner.img >/dev/null || fail "a link that stays inside"
expect_fail 'secret.img' as alice secret.img
for escape in ../bob/secret.img /etc/passwd link.img sub/../../bob/secret.img "$work/outside.img"; do
  expect_fail '.' as alice "$escape"
done
expect_fail '.' as .. alice/disk.img
expect_fail '.' as bob disk.img
stop "$server_pid"
