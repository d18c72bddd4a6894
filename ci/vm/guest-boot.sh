# SPDX-License-Identifier: Apache-2.0
# Runs in the guest as its first program once the root is there: sets up what every test needs, runs the job with
# its output on the virtio console, leaves the exit code behind, and switches the machine off.
# shellcheck shell=bash
job=$1
# The kernel has died under the job, and QEMU has booted it again: once is enough.
if ! mkdir "$job/began"; then
  touch "$job/died"
  echo 125 >"$job/rc"
  echo o >/proc/sysrq-trigger
  sleep 10
fi
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=${TERM:-dumb} LANG=C.UTF-8
export IBNBD_IN_GUEST=1
echo /sbin/modprobe >/proc/sys/kernel/modprobe
ln -sf /proc/self/fd /dev/fd
ln -sf /proc/self/fd/0 /dev/stdin
ln -sf /proc/self/fd/1 /dev/stdout
ln -sf /proc/self/fd/2 /dev/stderr
hostname ibnbd-guest
ip link set lo up
modprobe -a configfs >/dev/null 2>&1
mount -t configfs configfs /sys/kernel/config 2>/dev/null
mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
. "$job/environment"
cd "$JOB_DIRECTORY" || cd /
console=/dev/hvc0
if [ "${JOB_INTERACTIVE:-}" = 1 ]; then
  setsid -c -w bash "$job/command.sh" <$console >$console 2>&1
else
  stty -F $console -opost
  setsid -w bash "$job/command.sh" </dev/null >$console 2>&1
fi
echo $? >"$job/rc"
# Whoever left a task behind that cannot be killed has to answer for it.
ps -eo state,pid,wchan:32,args 2>/dev/null | awk '$1 == "D" && $4 !~ /^\[/ { print }' >"$job/stuck"
dmesg >"$job/dmesg" 2>/dev/null
sync
sleep 0.1
echo o >/proc/sysrq-trigger
sleep 10
