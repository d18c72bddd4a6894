# SPDX-License-Identifier: Apache-2.0
"""The part of `ci/bench --paths` that runs in the guest of ci/vm/run: a server in one network namespace, fio with our
engine in another, two wires between them, each of a limited bandwidth and with a delay.  Measures one path, two, two of
which one is ill in some way, and two of which one is cut under load; ci/bench_paths_host.py, on the host, starts it and
makes tables of what it saw.

Always: the scenarios of a round follow each other, in the reverse order in the next round; every program that is waited
for has a bound.
"""
import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time

import bench_fio
from bench_vm_peers import DISK, DISK_MIB, Lab, Skip, need, run, wait_until

PORT = 7000
WIRES = "ab"
# A wire in order: netem on both of its ends.  Slow enough that it is the wire that bounds, and not this guest's CPUs.
RATE_MBIT = 200
HEALTHY = f"delay 50us rate {RATE_MBIT}mbit"
DELAYED = f"delay 1050us rate {RATE_MBIT}mbit"
SCENARIOS = {  # name: (what it is, wires used, netem on the client's end of the second, netem on the server's end)
    "one": ("one path", 1, HEALTHY, HEALTHY),
    "two": ("two paths", 2, HEALTHY, HEALTHY),
    "delay": ("two, one takes 1 ms longer", 2, DELAYED, HEALTHY),
    "loss": ("two, one loses 1 % of its packets, each way", 2, f"{HEALTHY} loss 1%", f"{HEALTHY} loss 1%"),
    "half": ("two, one has half the bandwidth", 2, f"delay 50us rate {RATE_MBIT // 2}mbit",
             f"delay 50us rate {RATE_MBIT // 2}mbit"),
}
CUTS = [  # workload, wire that is cut: the first path is the one that the session began with.
    (("randwrite-4k-qd8", "randwrite", "4k", 8), "b"),
    (("randread-4k-qd8", "randread", "4k", 8), "a"),
    (("randwrite-4k-qd1", "randwrite", "4k", 1), "a"),
    (("write-128k-qd8", "write", "128k", 8), "b"),
]
WORKLOADS = [each for each in bench_fio.WORKLOADS
             if each[0] in ("randread-4k-qd1", "randwrite-4k-qd1", "randread-4k-qd32", "write-128k-qd8")]
CUT_SECONDS = 4
RAMP_SECONDS = 1  # Not counted: both paths come up, and TCP finds out what the wires can carry.


def address(wire, side):
    return f"10.79.{WIRES.index(wire) + 1}.{1 if side == 'client' else 2}"


def inside(side, *command):
    return ["ip", "netns", "exec", side, *command]


class Network:
    """Two namespaces and the wires between them."""

    def __init__(self):
        for side in ("client", "server"):
            need(["ip", "netns", "add", side])
            need(inside(side, "ip", "link", "set", "lo", "up"))
        need(["modprobe", "sch_netem"])
        for wire in WIRES:
            need(["ip", "link", "add", f"{wire}-client", "type", "veth", "peer", "name", f"{wire}-server"])
            for side in ("client", "server"):
                device = f"{wire}-{side}"
                # Packets as on a wire: netem would lose or delay 64 KiB at once.
                need(["ip", "link", "set", device, "gso_max_segs", "1", "netns", side])
                need(inside(side, "ip", "addr", "add", f"{address(wire, side)}/24", "dev", device))
                need(inside(side, "ip", "link", "set", device, "up"))
                need(inside(side, "tc", "qdisc", "add", "dev", device, "root", "netem", "limit", "10000", *HEALTHY.split()))
        for wire in WIRES:
            need(inside("client", "ping", "-c", "1", "-W", "2", address(wire, "server")))

    @staticmethod
    def set(wire, side, netem):
        need(inside(side, "tc", "qdisc", "change", "dev", f"{wire}-{side}", "root", "netem", "limit", "10000", *netem.split()))

    def heal(self):
        for wire in WIRES:
            for side in ("client", "server"):
                self.set(wire, side, HEALTHY)


class Paths:
    def __init__(self, lab):
        self.lab, self.network = lab, Network()

    def server(self):
        command = inside("server", f"{self.lab.options.bin}/ibnbd-server", "--listen", f"tcp://0.0.0.0:{PORT}",
                         "--export", f"v={DISK}")
        return self.lab.process(command, lambda log: re.search(r"^listening on ", log, re.M))

    def fio_command(self, wires, workloads, seconds, extra=()):
        lines = ["[global]", f"ioengine=external:{self.lab.options.fio_engine}",
                 f"uri=tcp://{address('a', 'server')}:{PORT}/v", "thread", "stonewall", "time_based", f"runtime={seconds}", f"ramp_time={RAMP_SECONDS}",
                 f"size={DISK_MIB}M", "randrepeat=0", "norandommap", "lat_percentiles=1", "clat_percentiles=0", *extra]
        if wires > 1:
            lines.append(f"paths={address('b', 'server')}:{PORT}")
        for name, rw, block_size, depth in workloads:
            lines += [f"[{name}]", f"rw={rw}", f"bs={block_size}", f"iodepth={depth}"]
        path = f"{self.lab.work}/paths.fio"
        with open(path, "w") as file:
            file.write("\n".join(lines) + "\n")
        return inside("client", "fio", "--output-format=json", path)

    def scenario(self, name, seconds):
        """One round of one scenario: figures by workload."""
        _, wires, client_end, server_end = SCENARIOS[name]
        self.network.heal()
        self.network.set("b", "client", client_end)
        self.network.set("b", "server", server_end)
        with self.server():
            done = run(self.fio_command(wires, WORKLOADS, seconds), len(WORKLOADS) * (seconds + 10) + 60, cwd=self.lab.work)
            return {job: figures(report) for job, report in jobs_of(done.returncode, done.stdout, done.stderr).items()}

    def cut(self, workload, wire):
        """A wire goes dead under load: the longest that an IO took, and the longest time without an answer."""
        self.network.heal()
        log = f"{self.lab.work}/gaps"
        extra = [f"write_lat_log={log}", "log_avg_msec=0"]
        with self.server():
            fio = subprocess.Popen(self.fio_command(2, [workload], CUT_SECONDS, extra), stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.lab.work)
            time.sleep(2.5)  # Both paths are up and in use.
            for side in ("client", "server"):
                self.network.set(wire, side, f"{HEALTHY} loss 100%")
            out, err = fio.communicate(timeout=CUT_SECONDS + 60)
            report = jobs_of(fio.returncode, out, err)[workload[0]]
            self.network.heal()
        times = [int(line.split(",")[0]) for line in open(f"{log}_lat.1.log")]
        return {"wire": wire, "longest_io_ms": side_of(report)["lat_ns"]["max"] / 1e6, "ios": side_of(report)["total_ios"],
                "longest_gap_ms": max(later - earlier for earlier, later in zip(times, times[1:]))}


def jobs_of(code, out, err):
    if code != 0 or "{" not in out:
        raise RuntimeError(f"fio: {((err or out).strip().splitlines() or [f'exit code {code}'])[0]}")
    report, _ = json.JSONDecoder().raw_decode(out, out.index("{"))
    for job in report["jobs"]:
        if job["error"]:
            raise RuntimeError(f"fio: {job['jobname']}: {os.strerror(job['error'])}")
    return {job["jobname"]: job for job in report["jobs"]}


def side_of(job):
    return max((job["read"], job["write"]), key=lambda side: side["total_ios"])


def figures(job):
    side = side_of(job)
    percentile = side["lat_ns"]["percentile"]
    return {"iops": side["iops"], "mean_us": side["lat_ns"]["mean"] / 1000, "p50_us": percentile["50.000000"] / 1000,
            "p99_us": percentile["99.000000"] / 1000, "p999_us": percentile["99.900000"] / 1000,
            "max_us": side["lat_ns"]["max"] / 1000}


def measure_all(paths, seen):
    options = paths.lab.options
    for index in range(options.rounds):
        title = f"round {index + 1} of {options.rounds}"
        for name in options.scenarios if index % 2 == 0 else options.scenarios[::-1]:
            started = time.monotonic()
            for workload, sample in paths.scenario(name, options.seconds).items():
                seen["samples"].setdefault(workload, {}).setdefault(name, []).append(sample)
            print(f"{title}: {name} ({time.monotonic() - started:.0f} s)", flush=True)
            save(options.out, seen)
        for workload, wire in CUTS if options.cuts else ():
            sample = paths.cut(workload, wire)
            seen["cuts"].setdefault(f"{workload[0]}, wire {wire}", []).append(sample)
            print(f"{title}: cut: {workload[0]}: {sample['longest_io_ms']:.0f} ms", flush=True)
            save(options.out, seen)


def save(path, seen):
    with open(f"{path}.new", "w") as file:
        json.dump(seen, file, indent=1)
    os.rename(f"{path}.new", path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", required=True, help="the programs to measure")
    parser.add_argument("--fio-engine", required=True)
    parser.add_argument("--out", required=True, help="what was seen is written here, after every scenario")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--cuts", action="store_true", help="and cut a wire under load")
    parser.add_argument("scenarios", nargs="+", choices=list(SCENARIOS))
    options = parser.parse_args()
    if os.environ.get("IBNBD_IN_GUEST") != "1":
        sys.exit("ci/bench_paths.py: changes the network of the machine it runs on: start it with ci/bench --paths")
    seen = {"guest": f"{os.cpu_count()} CPUs, Linux {platform.release()}, {run(['fio', '--version']).stdout.strip()}",
            "rounds": options.rounds, "seconds": options.seconds, "samples": {}, "cuts": {}}
    try:
        paths = Paths(Lab(options))
    except Skip as why:
        print(f"SKIP {why}")
        sys.exit(77)
    measure_all(paths, seen)


if __name__ == "__main__":
    main()
