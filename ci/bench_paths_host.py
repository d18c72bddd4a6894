# SPDX-License-Identifier: Apache-2.0
"""The host's part of `ci/bench --paths`: starts ci/bench_paths.py in one guest and makes tables of what it saw.  Called by
ci/bench once the programs are built."""
import json
import os
import statistics
import subprocess
import sys
import tempfile

from bench_fio import medians
from bench_paths import CUT_SECONDS, CUTS, HEALTHY, SCENARIOS, WORKLOADS
from bench_vm_host import sign_and_save

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ILL = ("delay", "loss", "half")
P99_AT_MOST = 1.2  # Of one healthy path's.
GAP_MS_BELOW = 1000


def run_in_guest(options, names):
    """What the guest saw, also when it was cut short, and its exit code."""
    with tempfile.TemporaryDirectory(prefix="ibnbd-bench.") as shared:
        out = f"{shared}/seen.json"
        limit = 120 + options.rounds * (len(names) * len(WORKLOADS) * (options.seconds + 3) + len(CUTS) * (CUT_SECONDS + 20))
        limit *= 4 if options.icount else 2
        share = [shared] + [os.path.dirname(path) for path in (options.bin, options.fio_engine)
                            if not path.startswith(f"{ROOT}/") and path.startswith(("/tmp/", "/run/", "/var/tmp/"))]
        command = [f"{ROOT}/ci/vm/run", "--fine-timers", "--timeout", str(limit)] + (["--icount"] if options.icount else [])
        command += [word for directory in dict.fromkeys(share) for word in ("--share", directory)]
        command += ["--", "python3", "-B", f"{ROOT}/ci/bench_paths.py", "--bin", options.bin, "--fio-engine", options.fio_engine,
                    "--out", out, "--rounds", str(options.rounds), "--seconds", str(options.seconds)]
        code = subprocess.run(command + ([] if options.quick else ["--cuts"]) + names, stdout=sys.stderr).returncode
        if not os.path.exists(out):
            return None, code
        with open(out) as file:
            return json.load(file), code


def ratios(seen, workload, metric, name):
    """Relative to one path's, of each round: neighbours in time had the same share of the host."""
    samples = seen["samples"][workload]
    return [ours[metric] / one[metric] for ours, one in zip(samples[name], samples["one"])]


def print_metric(seen, table, names, metric, title):
    print(f"\n### {title}\n\n| | {' | '.join(workload for workload, *_ in WORKLOADS)} |\n|---|{'---|' * len(WORKLOADS)}")
    for name in names:
        cells = []
        for workload, *_ in WORKLOADS:
            row = table.get((workload, name))
            ratio = f" ({statistics.median(ratios(seen, workload, metric, name)):.2f})" if row and (workload, "one") in table else ""
            cells.append(f"{row[metric]:.0f}{ratio}" if row else "-")
        print(f"| {name} | {' | '.join(cells)} |")


def verdict(reached):
    return "reached" if reached else "MISSED"


def print_goals(seen, names):
    print("\n### Goals: against one healthy path\n\n| goal | ratio, and those of the rounds | |\n|---|---|---|")
    for name in names:
        for workload, *_ in WORKLOADS:
            if name == "one" or not {name, "one"} <= set(seen["samples"].get(workload, {})):
                continue
            metric, text = ("p99_us", f"p99 at most {P99_AT_MOST}") if name in ILL else ("iops", "IOPS at least 1.0")
            each = ratios(seen, workload, metric, name)
            ratio = statistics.median(each)
            # What is printed is what is judged.
            reached = round(ratio, 2) <= P99_AT_MOST if name in ILL else round(ratio, 2) >= 1.0
            print(f"| {name}: {workload}: {text} | {ratio:.2f} ({min(each):.2f} to {max(each):.2f}) | {verdict(reached)} |")


def print_cuts(seen):
    if not seen["cuts"]:
        return
    print("\n### One of two paths cut under load, ms: the longest of all rounds\n\n| | an IO took | no IO ended for | an IO below "
          f"{GAP_MS_BELOW} |\n|---|---|---|---|")
    for title, samples in seen["cuts"].items():
        longest = max(sample["longest_io_ms"] for sample in samples)
        print(f"| {title} | {longest:.0f} | {max(sample['longest_gap_ms'] for sample in samples)} | {verdict(longest < GAP_MS_BELOW)} |")


def print_report(seen):
    names = [name for name in SCENARIOS if any(name in peers for peers in seen["samples"].values())]
    table = {(workload, name): medians(samples) for workload, peers in seen["samples"].items()
             for name, samples in peers.items()}
    print(f"{seen['command']}: revision {seen['revision']}, guest with {seen['guest']}; {seen['rounds']} rounds of {seen['seconds']} s; "
          f"medians; a ratio is the median of the rounds' ratios.  A wire: netem {HEALTHY}, on both ends.\n")
    for name in names:
        print(f"    {name:<6} {SCENARIOS[name][0]}")
    if seen["icount"]:
        print("\nThe guest's clock counts instructions, a nanosecond each, and its CPUs take turns.")
    print_metric(seen, table, names, "iops", "IOPS (÷ one path)")
    print_metric(seen, table, names, "p50_us", "Median latency, us (÷ one path)")
    print_metric(seen, table, names, "p99_us", "p99, us (÷ one path)")
    print_metric(seen, table, names, "p999_us", "p99.9, us (÷ one path)")
    print_goals(seen, names)
    print_cuts(seen)


def main(options):
    """The exit code: a missed goal is no failure."""
    if options.report:
        with open(options.report) as file:
            print_report(json.load(file))
        return 0
    names = options.scenarios.split(",") if options.scenarios else list(SCENARIOS)
    unknown = [name for name in names if name not in SCENARIOS]
    if unknown:
        sys.exit(f"ci/bench --scenarios: none is called '{unknown[0]}'; they are {','.join(SCENARIOS)}")
    seen, code = run_in_guest(options, names)
    if seen is None:
        return code or 1
    sign_and_save(seen, options)
    print_report(seen)
    return code
