#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The part of `ci/bench --vm` that runs in the guest of ci/vm/run: sets up each peer on one memory-backed disk,
measures it, takes it down again, and writes what it saw to a JSON file.  ci/bench_vm_host.py, on the host, starts it
and makes tables of it.

Always: one peer at a time, so that nobody pays for an idle neighbour's polling; every program that is waited for has
a bound.  A peer that cannot be set up is skipped with the reason (Skip); one that fails while it is measured has failed,
which is something else.
"""
import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
import types

import bench_vm_profile
from bench_fio import WORKLOADS
from bench_vm_peers import ADDRESS, DISK, DISK_MIB, PEERS, SYSCALLS, Lab, Skip, need, quietly, run, wait_until, write

TICK_US = 1e6 / os.sysconf("SC_CLK_TCK")
COUNTED = ("randread-4k-qd1", "randwrite-4k-qd1", "randread-4k-qd32", "randwrite-4k-qd32")
PROFILE_SECONDS = 6
WIRE = [  # perftest's program, message size, iterations
    ("ib_write_lat", 2, 2000),
    ("ib_write_lat", 4096, 1000),
    ("ib_read_lat", 4096, 1000),
    ("ib_write_bw", 131072, 400),
]
KERNEL = ("rnbd-rxe", "nvme-rxe")
DEPTH_32 = ("randread-4k-qd32", "randwrite-4k-qd32")
DEPTH_1 = ("randread-4k-qd1", "randwrite-4k-qd1")
# What the project wants to reach in IOPS, against the better of others: (peer, factor, workloads, others).
GOALS = [
    ("fio-rxe", 1.0, DEPTH_32, KERNEL),
    ("ublk-rxe", 0.8, DEPTH_32, KERNEL),
    ("rnbd-ours", 1.0, DEPTH_32 + DEPTH_1, ("rnbd-rxe",)),
    ("rnbd-keys", 0.85, DEPTH_32, ("rnbd-ours",)),
    ("fio-keys", 0.85, DEPTH_32, ("fio-rxe",)),
]


def goals_among(names):
    """The goals that can be judged with these peers."""
    return [goal for goal in GOALS if {goal[0], *goal[3]} <= set(names)]


def loops_in(seconds):
    """How often a trivial loop runs on all CPUs at once: the guest does not see when the host has no time for it."""
    script = f"import time; e = time.monotonic() + {seconds}; n = 0\nwhile time.monotonic() < e: n += 1\nprint(n)"
    loops = [subprocess.Popen([sys.executable, "-I", "-c", script], stdout=subprocess.PIPE) for _ in range(os.cpu_count())]
    return sum(int(loop.communicate(timeout=30)[0]) for loop in loops)


def read_snapshot(path, servers):
    """What the snapshot script saw when fio began or ended a job.  servers: "server" or "daemon", by pid."""
    seen = types.SimpleNamespace(busy=0, switches=0, ticks={"client": 0, "daemon": 0, "server": 0}, client_pid=0, rxe={},
                                 syscalls={})
    for line in open(path):
        name, _, text = line.rstrip("\n").partition(":")
        fields = text.split()
        if name == "/proc/stat" and fields[0] == "cpu":
            user, nice, system, _, _, irq, softirq, steal = map(int, fields[1:9])
            seen.busy = user + nice + system + irq + softirq + steal
        elif name == "/proc/stat" and fields[0] == "ctxt":
            seen.switches = int(fields[1])
        elif name.endswith("/hist"):
            match = re.search(r"common_pid: (\S+) *\[ *(\d+)\], id: sys_(\w+) .*hitcount: *(\d+)", text)
            if match:
                comm, tid, call, count = match.groups()
                seen.syscalls[(comm, int(tid), call)] = int(count)
        elif name.startswith("/proc/") and name != "/proc/stat":
            after_name = text.rsplit(")", 1)[1].split()
            ticks = int(after_name[11]) + int(after_name[12])
            pid = int(name.split("/")[2])
            seen.ticks[servers.get(pid, "client")] += ticks
            seen.client_pid = seen.client_pid if pid in servers else pid
        elif "/" not in name and text.strip().isdigit():
            seen.rxe[name] = int(text)
    return seen


def fio_file(lab, target, workloads, seconds):
    """All workloads in one fio, one after the other: its start costs as much as a second of work here.  fio itself says
    when a job begins and ends, so that what is counted is the job and nothing else."""
    pids = " ".join(str(process.pid) for process in lab.processes)
    text = ["[global]"] + target + [
        "thread", "stonewall", "time_based", f"runtime={seconds}", f"size={DISK_MIB}M", "randrepeat=0", "norandommap",
        "lat_percentiles=1", "clat_percentiles=0", f"exec_prerun=sh snapshot $PPID {pids}",
        f"exec_postrun=sh snapshot $PPID {pids}"]
    for name, rw, block_size, depth in workloads:
        text += [f"[{name}]", f"rw={rw}", f"bs={block_size}", f"iodepth={depth}"]
    path = f"{lab.work}/jobs.fio"
    with open(path, "w") as file:
        file.write("\n".join(text) + "\n")
    return path


def run_fio(lab, target, workloads, seconds):
    """Yields for every workload: its name, fio's report, and the snapshots of before and after."""
    done = run(["fio", "--output-format=json", fio_file(lab, target, workloads, seconds)],
               timeout=len(workloads) * (seconds + 10) + 30, cwd=lab.work)
    if done.returncode != 0 or "{" not in done.stdout:
        text = (done.stderr.strip() or done.stdout.strip()).splitlines() or [f"exit code {done.returncode}"]
        raise RuntimeError(f"fio: {text[0]}")
    report, _ = json.JSONDecoder().raw_decode(done.stdout, done.stdout.index("{"))
    servers = lab.sides()
    for job in report["jobs"]:
        before, after = (read_snapshot(f"{lab.work}/{job['jobname']}.{when}.txt", servers)
                         for when in ("prerun", "postrun"))
        if job["error"]:
            raise RuntimeError(f"fio: {job['jobname']}: {os.strerror(job['error'])}")
        yield job["jobname"], job, before, after


def measure(lab, target, workloads, seconds):
    """The samples of one round of one peer, by workload."""
    samples = {}
    for name, job, before, after in run_fio(lab, target, workloads, seconds):
        figures = job["read" if "read" in name else "write"]
        ios = max(figures["total_ios"], 1)
        rxe = {key: after.rxe[key] - before.rxe.get(key, 0) for key in after.rxe}
        samples[name] = {
            "iops": figures["iops"], "mib_s": figures["bw_bytes"] / 1048576, "mean_us": figures["lat_ns"]["mean"] / 1000,
            "p50_us": figures["lat_ns"]["percentile"]["50.000000"] / 1000,
            "p99_us": figures["lat_ns"]["percentile"]["99.000000"] / 1000,
            "busy_us": (after.busy - before.busy) * TICK_US / ios,
            **{f"{side}_us": (after.ticks[side] - before.ticks[side]) * TICK_US / ios for side in after.ticks},
            "switches": (after.switches - before.switches) / ios,
            "packets": rxe.get("sent_pkts", 0) / ios,
            "retries": (rxe.get("rcvd_seq_err", 0) + rxe.get("completer_retry_err", 0)) / ios,
        }
    return samples


def count_syscalls(lab, target):
    """System calls per IO, of fio and of the processes that serve, in a run of its own: counting them costs time."""
    chosen = [workload for workload in WORKLOADS if workload[0] in COUNTED]
    servers = {int(tid): side for pid, side in lab.sides().items() for tid in os.listdir(f"/proc/{pid}/task")}
    trigger = "hist:keys=common_pid.execname,id.syscall:size=16384"
    write(f"{SYSCALLS}/trigger", trigger)
    counted = {}
    try:
        for name, job, before, after in run_fio(lab, target, chosen, 1):
            ios = max(job["read"]["total_ios"] + job["write"]["total_ios"], 1)
            sides = counted.setdefault(name, {"client": {}, "daemon": {}, "server": {}})
            jobs = {tid for comm, tid, _ in before.syscalls if comm == "fio" and tid != before.client_pid}
            for key, count in after.syscalls.items():
                comm, tid, call = key
                if tid in servers or tid in jobs:
                    side = sides[servers.get(tid, "client")]
                    side[call] = side.get(call, 0) + (count - before.syscalls.get(key, 0)) / ios
    finally:
        write(f"{SYSCALLS}/trigger", f"!{trigger}")
    return counted


def profile(lab, target):
    """Where the CPU time of an IO goes, by workload."""
    profiles = {}
    for workload in (each for each in WORKLOADS if each[0] in COUNTED):
        def one_job():
            (_, job, _, _), = run_fio(lab, target, [workload], PROFILE_SECONDS)
            figures = job["read" if "read" in workload[0] else "write"]
            return max(figures["total_ios"], 1), figures["runtime"] / 1000

        try:
            profiles[workload[0]] = bench_vm_profile.profile(lab, one_job)
        except Skip as why:
            print(f"no profile: {why}", flush=True)
    return profiles


def perftest(program, size, iterations):
    """The last line of what perftest says, as numbers."""
    command = ["timeout", "30", program, "-d", "rxe0", "-R", "-s", str(size), "-n", str(iterations)]
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(15, program, lambda: "LISTEN" in run(["rdma", "resource", "show", "cm_id"]).stdout)
        done = run(command + [ADDRESS], 40)
        lines = [line for line in done.stdout.splitlines() if re.match(r"\s*\d+\s+\d+\s+[\d.]", line)]
        if done.returncode != 0 or not lines:
            raise Skip(f"{program}: {(done.stderr.strip().splitlines() or ['no result'])[-1]}")
        return [float(word) for word in lines[-1].split()]
    finally:
        server.terminate()
        server.wait(35)


def measure_wire():
    """perftest over the same Soft-RoCE: what nobody can be faster than."""
    figures = {}
    for program, size, iterations in WIRE:
        numbers = perftest(program, size, iterations)
        figures[f"{program} {size}"] = {"mib_s": numbers[3]} if program.endswith("_bw") else \
            {"typical_us": numbers[4], "mean_us": numbers[5]}
    return figures


def visit(lab, name, seen, title, workloads, seconds, first=False):
    """One round of one peer: set up, measured, taken down."""
    text, make = PEERS[name]
    peer = seen["peers"].setdefault(name, {"text": text})
    if "skipped" in peer or "failed" in peer:
        return
    started = time.monotonic()
    seen["speeds"].append(loops_in(0.3))
    try:
        with make(lab) as target:
            try:
                samples = measure(lab, target, workloads, seconds)
                for workload, sample in samples.items():
                    seen["samples"].setdefault(workload, {}).setdefault(name, []).append(sample)
                if first and lab.options.count:
                    seen["syscalls"][name] = count_syscalls(lab, target)
                if first and lab.options.profile:
                    seen["profiles"][name] = profile(lab, target)
            except (RuntimeError, OSError, KeyError, ValueError, subprocess.TimeoutExpired) as error:
                peer["failed"] = f"{type(error).__name__}: {error}"
    except Skip as why:
        peer["skipped"] = str(why)
    quietly(need, ["blockdev", "--flushbufs", DISK])
    outcome = f"skipped: {peer['skipped']}" if "skipped" in peer else f"FAILED: {peer['failed']}" if "failed" in peer else \
        f"{samples['randread-4k-qd32']['iops']:.0f} IOPS randread-4k-qd32"
    print(f"{title}: {name}: {outcome} ({time.monotonic() - started:.0f} s)", flush=True)
    with open(f"{lab.options.out}.new", "w") as file:
        json.dump(seen, file, indent=1)
    os.rename(f"{lab.options.out}.new", lab.options.out)


def visit_wire(title):
    """Its figures, or none: an emulated CPU is late at times, and perftest does not forgive that."""
    for attempt in range(3):
        try:
            return measure_wire()
        except (Skip, OSError, subprocess.TimeoutExpired) as why:
            print(f"{title}: the raw wire, attempt {attempt + 1}: {why}", flush=True)
    return None


def measure_all(lab, seen):
    options = lab.options

    def there_and_back(names, index):  # So that nobody is always first.
        return names if index % 2 == 0 else names[::-1]

    for index in range(options.rounds):
        title = f"round {index + 1} of {options.rounds}"
        for name in there_and_back(options.peers, index):
            if name == "fio-rxe" and options.wire:
                seen["wire"].append(visit_wire(title))
            visit(lab, name, seen, title, WORKLOADS, options.seconds, index == 0)
    # Then those that the goals speak of, in short visits: what disturbs a shared machine is longer than one of them.
    goals = goals_among(options.peers)
    chosen = [name for name in options.peers if any(name == goal[0] or name in goal[3] for goal in goals)]
    judged = [workload for workload in WORKLOADS if any(workload[0] in goal[2] for goal in goals)]
    for index in range(options.goal_rounds if goals else 0):
        for name in there_and_back(chosen, index):
            visit(lab, name, seen, f"goals {index + 1} of {options.goal_rounds}", judged, 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", required=True, help="the programs to measure")
    parser.add_argument("--fio-engine", required=True)
    parser.add_argument("--out", required=True, help="what was seen is written here, after every peer")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--goal-rounds", type=int, default=0, help="then so many short ones of the peers of the goals")
    parser.add_argument("--wire", action="store_true", help="measure the raw wire, too")
    parser.add_argument("--count", action="store_true", help="count system calls, too")
    parser.add_argument("--profile", action="store_true", help="sample where the time goes, too")
    parser.add_argument("peers", nargs="+", choices=list(PEERS))
    options = parser.parse_args()
    if os.environ.get("IBNBD_IN_GUEST") != "1":
        sys.exit("ci/bench_vm.py: changes modules and devices of the machine it runs on: start it with ci/bench --vm")
    seen = {"guest": f"{os.cpu_count()} CPUs, Linux {platform.release()}, {run(['fio', '--version']).stdout.strip()}",
            "rounds": options.rounds, "seconds": options.seconds, "goal_rounds": options.goal_rounds, "peers": {}, "samples": {}, "syscalls": {}, "profiles": {}, "wire": [],
            "speeds": []}
    try:
        lab = Lab(options)
    except Skip as why:
        print(f"SKIP {why}")
        sys.exit(77)
    measure_all(lab, seen)


if __name__ == "__main__":
    main()
