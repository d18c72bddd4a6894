# SPDX-License-Identifier: Apache-2.0
"""Where the CPU time of an IO goes, for `ci/bench --vm --profile`: perf samples the guest while fio runs, and every sample
is counted for one of the kinds below.  In the guest, called by ci/bench_vm.py with a peer that is set up.

Samples are taken by a timer, which must wait where interrupts are off: what runs there is seen at the place that turns
them on again, and has a kind of its own.  An idle CPU is no work, and neither is one that looks whether there is some.
"""
import os
import re
import signal
import subprocess

from bench_vm_peers import Skip, need, wait_until

IDLE = "idle"
LOOKING = "looking for work"
# The first that fits: (what it is, the program or module it is in, its function); regular expressions, None is any.
KINDS = [
    (IDLE, r"^swapper$", None, r"halt|idle"),
    (LOOKING, None, None, r"Reactor::Spin|EventLoop::Spin|HasWork|HasUserSpaceWork"),
    ("checksums of packets", None, None, r"crc32|icrc"),
    ("copies", None, None, r"mem(cpy|set|move)|copy_(user|from|to|page)|rep_movs|rxe_mr_copy|copy_data|clear_page|_copy_"),
    ("interrupts off: wake-ups, queues", None, None, r"^_raw_(spin|read|write)_(un)?lock"),
    ("switches between threads", None, None,
     r"finish_task_switch|schedule|switch_|try_to_wake|ttwu|(en|de)queue_(task|entity)|pick_(next|eevdf|task)|_fair$|update_curr|"
     r"__switch_to|select_task|worker_thread|process_one_work|queue_work|wake_up"),
    ("Soft-RoCE, the rest", None, None, r"rxe|^do_task|^do_work|^get_req|^check_(psn|rkey|ack)|^send_ack|^execute$|^acknowledge"),
    ("verbs in the kernel", None, None, r"^ib_|uverbs|^rdma_"),
    ("the kernel's RNBD, NVMe-oF, NBD, ublk", None, None, r"^_*(rnbd|rtrs|nvme|nvmet|nbd|ublk)"),
    ("network stack", None, None, r"skb|^ip_|^__ip|dev_|udp|sock|netif|^nf_|^rt_|dst_|neigh|loopback|^net_|siphash|eth_"),
    ("memory of the kernel", None, None, r"kmem|kmalloc|kfree|slab|alloc_|free_|memcg|obj_cgroup|check_object"),
    ("io_uring", None, None, r"^io_|^__io_|io_uring"),
    ("block layer and disk", None, None, r"blk|bio|null_|elv_|^dd_|sbitmap"),
    ("block layer and disk", None, r"null_blk", None),
    ("system calls, in and out", None, None, r"do_syscall|entry_|irqentry|exit_to_user|vfs_|ksys_|fdget|fput|poll"),
    ("ibnbd", None, r"libibnbd|ibnbd-|ibnbd_fio", None),
    ("libibverbs", None, r"libibverbs|librxe|librdmacm", None),
    ("fio", None, r"/fio$|^fio$", None),
    ("libc and clock", None, r"libc\.|vdso|libstdc|libpthread|ld-linux", None),
    ("kernel, the rest", None, r"kernel|\[|guest", None),
]


def us_per_io(profile, icount):
    """Microseconds of work per IO, by kind.  With --icount the CPUs take turns, so that time is work; a sample of one that
    waits for its turn says no more than where it waits, which is taken for a sample of where it works."""
    work = {kind: count for kind, count in profile["samples"].items() if kind not in (IDLE, LOOKING)}
    cpus = 1 if icount else profile["cpus"] * sum(work.values()) / max(sum(profile["samples"].values()), 1)
    a_sample_us = profile["seconds"] * 1e6 * cpus / max(sum(work.values()), 1) / profile["ios"]
    return {kind: count * a_sample_us for kind, count in work.items()}


def kind_of(command, place, function):
    for kind, *patterns in KINDS:
        if all(pattern is None or re.search(pattern, text) for pattern, text in zip(patterns, (command, place, function))):
            return kind
    return "other programs"


def count_samples(path):
    """By kind, how many samples perf took."""
    listed = need(["perf", "report", "-i", path, "--stdio", "--no-children", "-g", "none", "--sort", "comm,dso,sym", "-F",
                   "sample,comm,dso,sym", "-t", "|"], 120)
    counts = {}
    for line in listed.splitlines():
        fields = [field.strip() for field in line.split("|")]
        if line.startswith("#") or len(fields) < 4 or not fields[0].isdigit():
            continue
        kind = kind_of(fields[1], fields[2], re.sub(r"^\[[.k]\] ", "", fields[3]))
        counts[kind] = counts.get(kind, 0) + int(fields[0])
    return counts


def profile(lab, run_fio):
    """Samples by kind, of all CPUs during one job.  run_fio: runs the job, which says with lab's snapshots when it begins and
    ends (Lab.__init__); returns how many IOs it made, in how many seconds."""
    control, answer, data = (f"{lab.work}/perf.{name}" for name in ("control", "answer", "data"))
    for path in (control, answer, data, f"{lab.work}/perf.on"):
        if os.path.exists(path):
            os.unlink(path)
    os.mkfifo(control)
    os.mkfifo(answer)
    try:
        perf = subprocess.Popen(["perf", "record", "-a", "-e", "cpu-clock", "-F", "249", "-D", "-1", "--control", f"fifo:{control},{answer}",
                                 "-o", data], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except FileNotFoundError:
        os.unlink(control)
        raise Skip("perf is not installed") from None
    try:
        wait_until(30, "perf record", lambda: os.path.exists(data))
        ios, seconds = run_fio()
    finally:
        os.unlink(control)
        perf.send_signal(signal.SIGINT)
        try:
            perf.wait(60)
        except subprocess.TimeoutExpired:
            perf.kill()
            perf.wait(10)
    return {"samples": count_samples(data), "ios": ios, "seconds": seconds, "cpus": os.cpu_count()}
