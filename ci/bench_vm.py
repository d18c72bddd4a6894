#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The part of `ci/bench --vm` that runs in the guest of ci/vm/run: sets up each peer on one memory-backed disk,
measures it, takes it down again, and writes what it saw to a JSON file.  ci/bench_vm_report.py, on the host, starts it
and makes tables of it.

Always: one peer at a time, so that nobody pays for an idle neighbour's polling; every program that is waited for has
a bound; whatever a peer set up is taken down in reverse order, also after a failure.  A peer that cannot be set up is
skipped with the reason (Skip); one that fails while it is measured has failed, which is something else.
"""
import argparse
import contextlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
import types

from bench_fio import WORKLOADS

TICK_US = 1e6 / os.sysconf("SC_CLK_TCK")
ADDRESS = "10.77.0.1"  # What rxe_up of ci/vm/guest-lib.sh gives.
DISK = "/dev/nullb0"
DISK_MIB = 256
COUNTERS = "/sys/class/infiniband/rxe0/ports/1/hw_counters"
NVMET = "/sys/kernel/config/nvmet"
SYSCALLS = "/sys/kernel/tracing/events/raw_syscalls/sys_enter"
COUNTED = ("randread-4k-qd1", "randwrite-4k-qd1", "randread-4k-qd32", "randwrite-4k-qd32")
WIRE = [  # perftest's program, message size, iterations
    ("ib_write_lat", 2, 2000),
    ("ib_write_lat", 4096, 1000),
    ("ib_read_lat", 4096, 1000),
    ("ib_write_bw", 131072, 400),
]
KERNEL = ("rnbd-rxe", "nvme-rxe")
DEPTH_32 = ("randread-4k-qd32", "randwrite-4k-qd32")
# What the project wants to reach in IOPS, against the better of KERNEL: (peer, factor, workloads).
GOALS = [("fio-rxe", 1.0, DEPTH_32), ("ublk-rxe", 0.8, DEPTH_32)]


class Skip(Exception):
    """This peer cannot be set up here; the text says why."""


def run(command, timeout=30, **extra):
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, **extra)


def need(command, timeout=30):
    """Runs a command without which the peer cannot be set up; returns what it printed."""
    try:
        done = run(command, timeout)
    except FileNotFoundError:
        raise Skip(f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise Skip(f"{' '.join(command)}: not done after {timeout} s") from None
    if done.returncode != 0:
        text = (done.stderr + done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise Skip(f"{' '.join(command)}: {text[-1]}")
    return done.stdout


def need_modules(*names):
    for name in names:
        need(["modprobe"] + name.split())


def write(path, text):
    try:
        with open(path, "w") as file:
            file.write(text)
    except OSError as error:
        raise Skip(f"{path}: write '{text}': {error.strerror}") from None


def quietly(action, *arguments):
    """For taking down: what is gone already is no fault."""
    with contextlib.suppress(OSError, Skip, subprocess.TimeoutExpired):
        action(*arguments)


def wait_until(seconds, what, condition):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise Skip(f"{what}: not after {seconds} s")
        time.sleep(0.05)


class Lab:
    """The guest: its disk, its Soft-RoCE, and the processes that serve the peer of the moment."""

    def __init__(self, options):
        self.options = options
        self.work = tempfile.mkdtemp(prefix="ibnbd-bench.", dir="/run")
        self.processes = []  # Their CPU time is the server's.
        need(["bash", "-c", f'. "$VM_LIB" && rxe_up {ADDRESS} && memory_disk 0 {DISK_MIB}'])
        # Every page is there: reading what was never written costs nothing.
        need(["dd", "if=/dev/urandom", f"of={DISK}", "bs=1M", f"count={DISK_MIB}", "oflag=direct"], 120)
        need(["mount", "-t", "tracefs", "tracefs", "/sys/kernel/tracing"])
        # The shell that fio starts has its pid as $PPID.
        with open(f"{self.work}/snapshot", "w") as script:
            script.write("f=/proc/stat\nfor p in \"$@\"; do f=\"$f /proc/$p/stat\"; done\n"
                         f"cd {COUNTERS} && grep -s '' $f * {SYSCALLS}/hist\ntrue\n")

    @contextlib.contextmanager
    def process(self, command, ready):
        """A process that serves; yields what `ready` made of its log."""
        log = tempfile.NamedTemporaryFile("w+", dir=self.work, prefix="log-", delete=False)
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        except FileNotFoundError:
            raise Skip(f"{command[0]} is not installed") from None
        self.processes.append(process)
        answers = []

        def answered():
            text = open(log.name).read()
            if process.poll() is not None:
                raise Skip(f"{' '.join(command)}: {(text.strip().splitlines() or ['ended at once'])[-1]}")
            answers.append(ready(text))
            return answers[-1]

        try:
            wait_until(20, f"{' '.join(command)}: ready", answered)
            yield answers[-1]
        finally:
            self.processes.remove(process)
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)

    def sides(self):
        """By pid: the daemon that holds our devices works for the client, and is counted apart from servers."""
        return {process.pid: "daemon" if "daemon" in process.args else "server" for process in self.processes}

    @contextlib.contextmanager
    def server(self, transport):
        """ibnbd-server with the disk as "v"; yields the volume's URI."""
        listen = f"rdma://{ADDRESS}:0" if transport == "rxe" else "tcp://127.0.0.1:0"
        command = [f"{self.options.bin}/ibnbd-server", "--listen", listen, "--export", f"v={DISK}"]

        def listening(text):
            match = re.search(r"^listening on (\S+)", text, re.M)
            return match and match.group(1)

        with self.process(command, listening) as uri:
            yield f"{uri}/v"


def on_device(node):
    return [f"filename={node}", "ioengine=io_uring", "direct=1"]


@contextlib.contextmanager
def disk_itself(lab):
    yield on_device(DISK)


@contextlib.contextmanager
def our_engine(lab, transport):
    with lab.server(transport) as uri:
        yield [f"ioengine=external:{lab.options.fio_engine}", f"uri={uri}"]


@contextlib.contextmanager
def our_device(lab, kind, transport):
    client = f"{lab.options.bin}/ibnbd-client"
    if not re.search(r"^ +map\b", need([client, "--help"]), re.M):
        raise Skip("this ibnbd-client has no 'map'")
    need_modules("ublk_drv" if kind == "ublk" else "nbd")
    with lab.server(transport) as uri, \
            lab.process([client, "daemon"], lambda log: run([client, "list"]).returncode == 0):
        node = need([client, "map", uri, "--as", kind]).split()[-1]
        try:
            wait_until(5, node, lambda: os.path.exists(node))
            yield on_device(node)
        finally:
            quietly(need, [client, "unmap", node])


@contextlib.contextmanager
def kernel_rnbd(lab):
    # Larger than the default, so that 128 KiB and its header travel in one piece, as they do for the others.
    need_modules("rtrs-server max_chunk_size=262144", "rnbd-server", "rnbd-client")
    try:
        write("/sys/class/rnbd-client/ctl/map_device", f"sessname=bench path=ip:{ADDRESS} device_path={DISK}")
        node = next(iter(name for name in os.listdir("/sys/block") if name.startswith("rnbd")), None)
        if node is None:
            raise Skip("rnbd-client: mapped, and no device appeared")
        wait_until(5, f"/dev/{node}", lambda: os.path.exists(f"/dev/{node}"))
        try:
            yield on_device(f"/dev/{node}")
        finally:
            quietly(write, f"/sys/block/{node}/rnbd/unmap_device", "normal")
            quietly(wait_until, 10, "unmap", lambda: not os.path.exists(f"/sys/block/{node}"))
    finally:
        for module in ("rnbd-client", "rnbd-server", "rtrs-client", "rtrs-server"):
            quietly(need, ["modprobe", "-r", module])


@contextlib.contextmanager
def nvme_target(transport, address, service):
    """The kernel's NVMe-oF target with the disk as its one namespace."""
    subsystem, port = f"{NVMET}/subsystems/bench", f"{NVMET}/ports/1"
    link = f"{port}/subsystems/bench"
    try:
        for directory in (subsystem, f"{subsystem}/namespaces/1", port):
            os.makedirs(directory)
        write(f"{subsystem}/attr_allow_any_host", "1")
        write(f"{subsystem}/namespaces/1/device_path", DISK)
        write(f"{subsystem}/namespaces/1/enable", "1")
        for name, value in (("trtype", transport), ("adrfam", "ipv4"), ("traddr", address), ("trsvcid", service)):
            write(f"{port}/addr_{name}", value)
        os.symlink(subsystem, link)
        yield
    finally:
        quietly(os.unlink, link)
        quietly(os.rmdir, port)
        quietly(write, f"{subsystem}/namespaces/1/enable", "0")
        quietly(os.rmdir, f"{subsystem}/namespaces/1")
        quietly(os.rmdir, subsystem)


def nvme_disks():
    return {name for name in os.listdir("/sys/block") if re.fullmatch(r"nvme\d+n\d+", name)}


@contextlib.contextmanager
def kernel_nvme(lab, transport):
    address, service = (ADDRESS, "4420") if transport == "rdma" else ("127.0.0.1", "4421")
    need_modules("nvmet", f"nvmet-{transport}", f"nvme-{transport}")
    with nvme_target(transport, address, service):
        before = nvme_disks()
        write("/dev/nvme-fabrics", f"transport={transport},traddr={address},trsvcid={service},nqn=bench")
        try:
            wait_until(10, "an NVMe disk", lambda: nvme_disks() - before)
            node = f"/dev/{(nvme_disks() - before).pop()}"
            wait_until(5, node, lambda: os.path.exists(node))
            yield on_device(node)
        finally:
            for controller in os.listdir("/sys/class/nvme"):
                quietly(write, f"/sys/class/nvme/{controller}/delete_controller", "1")
            quietly(wait_until, 10, "disconnect", lambda: not nvme_disks() - before)


@contextlib.contextmanager
def kernel_nbd(lab, transport):
    need_modules("nbd")
    socket = f"{lab.work}/nbdkit.sock"
    quietly(os.unlink, socket)
    place = ["-U", socket] if transport == "unix" else ["-i", "127.0.0.1", "-p", "10809"]
    target = ["-unix", socket] if transport == "unix" else ["127.0.0.1", "10809"]

    def answers(log):
        return run(["nbdinfo", "--size", f"nbd+unix:///?socket={socket}" if transport == "unix" else
                    "nbd://127.0.0.1:10809/"]).returncode == 0

    with lab.process(["nbdkit", "-f"] + place + ["file", DISK], answers):
        need(["nbd-client"] + target + ["/dev/nbd0", "-N", "", "-C", str(os.cpu_count())])
        try:
            yield on_device("/dev/nbd0")
        finally:
            quietly(need, ["nbd-client", "-d", "/dev/nbd0"])


# In the order of measuring: those that are compared with each other are neighbours, because the speed of a shared machine
# moves within minutes.
PEERS = {  # name: (what it is, how it is set up)
    "disk": ("fio on the disk itself, no network", disk_itself),
    "rnbd-rxe": ("kernel RNBD -> rxe -> kernel RNBD server", kernel_rnbd),
    "fio-rxe": ("fio, our engine -> rxe -> ibnbd-server", lambda lab: our_engine(lab, "rxe")),
    "nvme-rxe": ("kernel NVMe-oF -> rxe -> kernel target", lambda lab: kernel_nvme(lab, "rdma")),
    "ublk-rxe": ("our /dev/ublkbN -> rxe -> ibnbd-server", lambda lab: our_device(lab, "ublk", "rxe")),
    "nbd-rxe": ("our /dev/nbdN -> rxe -> ibnbd-server", lambda lab: our_device(lab, "nbd", "rxe")),
    "fio-tcp": ("fio, our engine -> TCP -> ibnbd-server", lambda lab: our_engine(lab, "tcp")),
    "nvme-tcp": ("kernel NVMe/TCP -> kernel target", lambda lab: kernel_nvme(lab, "tcp")),
    "ublk-tcp": ("our /dev/ublkbN -> TCP -> ibnbd-server", lambda lab: our_device(lab, "ublk", "tcp")),
    "nbd-tcp": ("our /dev/nbdN -> TCP -> ibnbd-server", lambda lab: our_device(lab, "nbd", "tcp")),
    "nbdkit-tcp": ("kernel NBD -> TCP -> nbdkit file (page cache)", lambda lab: kernel_nbd(lab, "tcp")),
    "nbdkit-unix": ("kernel NBD -> unix socket -> nbdkit file (page cache)", lambda lab: kernel_nbd(lab, "unix")),
}


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


def visit(lab, name, seen, title, workloads, seconds, count=False):
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
                if count:
                    seen["syscalls"][name] = count_syscalls(lab, target)
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
            if name == "fio-rxe":
                seen["wire"].append(visit_wire(title))
            visit(lab, name, seen, title, WORKLOADS, options.seconds, options.count and index == 0)
    # Then those that the goals speak of, in short visits: what disturbs a shared machine is longer than one of them.
    chosen = [name for name in options.peers if name in KERNEL or name in (goal[0] for goal in GOALS)]
    for index in range(options.goal_rounds):
        for name in there_and_back(chosen, index):
            visit(lab, name, seen, f"goals {index + 1} of {options.goal_rounds}",
                  [workload for workload in WORKLOADS if workload[0] in DEPTH_32], 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", required=True, help="the programs to measure")
    parser.add_argument("--fio-engine", required=True)
    parser.add_argument("--out", required=True, help="what was seen is written here, after every peer")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--goal-rounds", type=int, default=0, help="then so many short ones of the peers of the goals")
    parser.add_argument("--count", action="store_true", help="count system calls, too")
    parser.add_argument("peers", nargs="+", choices=list(PEERS))
    options = parser.parse_args()
    if os.environ.get("IBNBD_IN_GUEST") != "1":
        sys.exit("ci/bench_vm.py: changes modules and devices of the machine it runs on: start it with ci/bench --vm")
    seen = {"guest": f"{os.cpu_count()} CPUs, Linux {platform.release()}, {run(['fio', '--version']).stdout.strip()}",
            "rounds": options.rounds, "seconds": options.seconds, "goal_rounds": options.goal_rounds, "peers": {}, "samples": {}, "syscalls": {}, "wire": [],
            "speeds": []}
    try:
        lab = Lab(options)
    except Skip as why:
        print(f"SKIP {why}")
        sys.exit(77)
    measure_all(lab, seen)


if __name__ == "__main__":
    main()
