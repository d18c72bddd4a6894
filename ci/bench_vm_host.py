# SPDX-License-Identifier: Apache-2.0
"""The host's part of `ci/bench --vm`: starts ci/bench_vm.py in one guest and makes tables of what it saw.  Called by
ci/bench once the programs are built."""
import json
import os
import statistics
import subprocess
import sys
import tempfile

import bench_vm
import bench_vm_peers
import bench_vm_profile
from bench_fio import WORKLOADS, medians
from bench_vm import KERNEL, goals_among

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# What the raw wire of the same boot is for a workload: (perftest's figure, its metric, ours).
WIRE = {
    "randread-4k-qd1": ("ib_read_lat 4096", "typical_us", "p50_us"),
    "randwrite-4k-qd1": ("ib_write_lat 4096", "typical_us", "p50_us"),
    "read-128k-qd8": ("ib_write_bw 131072", "mib_s", "mib_s"),
    "write-128k-qd8": ("ib_write_bw 131072", "mib_s", "mib_s"),
}


def chosen_peers(options):
    names = options.peers.split(",") if options.peers else bench_vm_peers.RNBD if options.rnbd else bench_vm_peers.STACKS
    unknown = [name for name in names if name not in bench_vm_peers.PEERS]
    if unknown:
        sys.exit(f"ci/bench --peers: no peer is called '{unknown[0]}'; they are {','.join(bench_vm_peers.PEERS)}")
    return names


def run_in_guest(options, names):
    """What the guest saw, also when it was cut short, and its exit code."""
    modules = subprocess.run([f"{ROOT}/ci/vm/build-rnbd"], stdout=subprocess.PIPE, text=True)
    if modules.returncode != 0:
        print(f"ci/vm/build-rnbd: {modules.stdout.strip() or 'failed'}: kernel RNBD will be skipped", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="ibnbd-bench.") as shared:
        out = f"{shared}/seen.json"
        per_peer = (len(WORKLOADS) + len(bench_vm.COUNTED)) * (options.seconds + 3) + 30
        limit = 180 + options.rounds * (60 + len(names) * per_peer) + options.goal_rounds * len(names) * 40
        limit += len(names) * 4 * 120 if options.profile else 0
        limit *= 4 if options.icount else 1
        share = [shared] + [os.path.dirname(path) for path in (options.bin, options.fio_engine)
                            if not path.startswith(f"{ROOT}/") and path.startswith(("/tmp/", "/run/", "/var/tmp/"))]
        command = [f"{ROOT}/ci/vm/run", "--timeout", str(limit)] + (["--icount"] if options.icount else [])
        command += [word for directory in dict.fromkeys(share) for word in ("--share", directory)]
        command += ["--", "python3", "-B", f"{ROOT}/ci/bench_vm.py", "--bin", options.bin, "--fio-engine",
                    options.fio_engine, "--out", out, "--rounds", str(options.rounds), "--seconds", str(options.seconds),
                    "--goal-rounds", str(options.goal_rounds)]
        # perftest's two sides poll memory, each for the other's whole slice of a CPU that they take turns on.
        flags = (["--profile"] if options.profile else []) + ([] if options.quick else ["--count"]) + ([] if options.icount else ["--wire"])
        code = subprocess.run(command + flags + names, stdout=sys.stderr).returncode
        if not os.path.exists(out):
            return None, code
        with open(out) as file:
            return json.load(file), code


def best_of(table, workload, names):
    """The better of these in IOPS, by its name, or None where all are missing."""
    there = [name for name in names if (workload, name) in table]
    return max(there, key=lambda name: table[workload, name]["iops"], default=None)


def ratios_to(seen, workload, name, other):
    """IOPS relative to another peer's: of each round, because neighbours in time had the same share of the host."""
    ours, theirs = (seen["samples"][workload][each] for each in (name, other))
    return [a["iops"] / b["iops"] for a, b in zip(ours, theirs)]


def wire_text(seen, workload, name):
    """How many times the wire's latency, or what share of its bandwidth: of each round, as in ratio_to."""
    if workload not in WIRE or not name.endswith("-rxe"):
        return ""
    figure, metric, ours = WIRE[workload]
    ratios = [sample[ours] / raw[figure][metric] for sample, raw in zip(seen["samples"][workload][name], seen["wire"]) if raw]
    if not ratios:
        return "not measured" if seen["wire"] else ""
    ratio = statistics.median(ratios)
    return f"{ratio:.1f} x" if metric == "typical_us" else f"{100 * ratio:.0f} %"


def print_workload(seen, table, workload, names):
    figure = f", against {WIRE[workload][0]}" if workload in WIRE else ""
    print(f"\n### {workload}\n\n| peer | IOPS | spread | MiB/s | mean us | p50 us | p99 us | CPU us/IO | switches/IO | packets/IO "
          f"| ÷ best kernel | raw wire{figure} |\n|---|---|---|---|---|---|---|---|---|---|---|---|")
    best = best_of(table, workload, KERNEL)
    for name in names:
        if (workload, name) not in table:
            continue
        row, rounds = table[workload, name], [sample["iops"] for sample in seen["samples"][workload][name]]
        ratio = f"{statistics.median(ratios_to(seen, workload, name, best)):.2f}" if best else "-"
        spread = f"{100 * (max(rounds) - min(rounds)) / row['iops']:.0f} %" if len(rounds) > 1 else "-"
        print(f"| {name} | {row['iops']:.0f} | {spread} | {row['mib_s']:.1f} "
              f"| {row['mean_us']:.0f} | {row['p50_us']:.0f} | {row['p99_us']:.0f} | {row['busy_us']:.0f} "
              f"| {row['switches']:.1f} | {row['packets']:.1f} | {ratio} | {wire_text(seen, workload, name)} |")


def print_costs(seen, table, names):
    """Where the CPU time of an IO is spent, and its system calls."""
    print("\n### CPU time per IO, us: fio's process, the daemon that holds our devices, the server, and the rest, which is the "
          "kernel's own threads and interrupts\n\n| workload | peer | fio | daemon | server | rest | system calls: fio | daemon | server |\n"
          "|---|---|---|---|---|---|---|---|---|")
    for workload in bench_vm.COUNTED:
        for name in names:
            if (workload, name) not in table:
                continue
            row, calls = table[workload, name], seen["syscalls"].get(name, {}).get(workload, {})
            sides = ("client", "daemon", "server")
            rest = row["busy_us"] - sum(row[f"{side}_us"] for side in sides)
            texts = [", ".join(f"{call} {rate:.2f}" for call, rate in sorted(calls.get(side, {}).items(), key=lambda x: -x[1])
                               if rate >= 0.02) for side in sides]
            print(f"| {workload} | {name} | {' | '.join(format(row[f'{side}_us'], '.0f') for side in sides)} | {max(rest, 0):.0f} "
                  f"| {' | '.join(texts)} |")


def print_profiles(seen, names):
    there = [name for name in names if name in seen["profiles"]]
    for workload in bench_vm.COUNTED if there else ():
        profiles = [seen["profiles"][name].get(workload) for name in there]
        columns = [bench_vm_profile.us_per_io(each, seen["icount"]) if each else {} for each in profiles]
        print(f"\n### What an IO is made of: {workload}, us\n\n| | {' | '.join(there)} |\n|---|{'---|' * len(there)}")
        kinds = {kind for column in columns for kind in column}
        for kind in sorted(kinds, key=lambda kind: -max(each.get(kind, 0) for each in columns)):
            print(f"| {kind} | {' | '.join(format(each.get(kind, 0), '.1f') for each in columns)} |")
        print(f"| all | {' | '.join(format(sum(each.values()), '.1f') for each in columns)} |")


def print_goals(seen, table, names):
    goals = goals_among(names)
    if not goals:
        return
    print("\n### Goals, IOPS\n\n| goal | against | ours | ratio, and those of the rounds | |\n|---|---|---|---|---|")
    for name, factor, workloads, others in goals:
        for workload in workloads:
            best, ours = best_of(table, workload, others), table.get((workload, name))
            if best is None or ours is None:
                missing = name if ours is None else " nor ".join(others)
                print(f"| {name} {workload} at least {factor} | | | | not judged: no figure of {missing} |")
                continue
            ratios = ratios_to(seen, workload, name, best)
            ratio = statistics.median(ratios)
            print(f"| {name} {workload} at least {factor} | {best} {table[workload, best]['iops']:.0f} | {ours['iops']:.0f} "
                  f"| {ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | {'reached' if ratio >= factor else 'MISSED'} |")


def print_host(seen):
    """What else has to be known: the raw wire, and how much time the host had."""
    print("\n| raw wire, the same boot | |\n|---|---|")
    measured = [figures for figures in seen["wire"] if figures]
    for figure in measured[0] if measured else ():
        middle = medians([figures[figure] for figures in measured])
        print(f"| {figure} | {', '.join(f'{metric} {value:.1f}' for metric, value in middle.items())} |")
    slow, fast = min(seen["speeds"]), max(seen["speeds"])
    print(f"\nThe host gave the guest more time at some moments than at others: before each peer a loop was timed, and the slowest "
          f"was {100 * (fast - slow) / fast:.0f} % below the fastest.")


def print_summary(seen, table, names):
    """One line per peer: IOPS, and relative to the better of the kernel's own over rxe."""
    there = [workload for workload, *_ in WORKLOADS if workload in seen["samples"]]
    bases = " and ".join(name for name in KERNEL if name in names)
    print(f"\n### IOPS{f' (÷ the better of {bases})' if bases else ''}\n\n| | {' | '.join(there)} |\n|---|{'---|' * len(there)}")
    for name in names:
        cells = []
        for workload in there:
            best = best_of(table, workload, KERNEL)
            ratio = f" ({statistics.median(ratios_to(seen, workload, name, best)):.2f})" if best and (workload, name) in table else ""
            cells.append(f"{table[workload, name]['iops']:.0f}{ratio}" if (workload, name) in table else "-")
        print(f"| {name} | {' | '.join(cells)} |")


def print_report(seen, names):
    table = {(workload, name): medians(samples) for workload, peers in seen["samples"].items()
             for name, samples in peers.items()}
    print(f"{seen['command']}: revision {seen['revision']}, guest with {seen['guest']}; "
          f"{seen['rounds']} rounds of {seen['seconds']} s, and {seen['goal_rounds']} of 1 s for the goals; medians; a ratio is the median of the "
          "rounds' ratios\n")
    for name in names:
        print(f"    {name:<12} {seen['peers'].get(name, {}).get('text', 'not reached')}")
    if seen["icount"]:
        print("\nThe guest's clock counts instructions, a nanosecond each, and its CPUs take turns.")
    else:
        print_host(seen)
    print_summary(seen, table, names)
    for workload, *_ in WORKLOADS:
        print_workload(seen, table, workload, names)
    print_costs(seen, table, names)
    print_profiles(seen, names)
    print_goals(seen, table, names)
    outcomes = {"measured": [], "skipped": [], "failed": []}
    for name in names:
        peer = seen["peers"].get(name, {"failed": "the guest ended before"})
        outcome = next((key for key in ("failed", "skipped") if key in peer), "measured")
        outcomes[outcome].append(f"{name}: {peer.get(outcome, '')}")
    print(f"\n{', '.join(f'{len(each)} {outcome}' for outcome, each in outcomes.items())}")
    for outcome in ("skipped", "failed"):
        for line in outcomes[outcome]:
            print(f"  {outcome} {line}")
    return not outcomes["failed"]


def sign_and_save(seen, options):
    """How and of what it was measured; and all of it where --json says."""
    revision = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True)
    seen |= {"icount": options.icount, "command": " ".join(sys.argv), "revision": revision.stdout.strip() or "unknown"}
    if options.json:
        with open(options.json, "w") as file:
            json.dump(seen, file, indent=1)


def main(options, names):
    """The exit code: a missed goal is no failure, a peer that broke while it was measured is one."""
    if options.report:
        with open(options.report) as file:
            seen = json.load(file)
        return 0 if print_report(seen, list(seen["peers"])) else 1
    seen, code = run_in_guest(options, names)
    if seen is None:
        return code or 1
    sign_and_save(seen, options)
    return 0 if print_report(seen, names) and code == 0 else 1
