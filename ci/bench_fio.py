# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks on this machine (ci/bench) and in the guest (ci/bench_vm.py) share: the workloads, and how the
samples of several rounds become one number."""
import statistics

WORKLOADS = [  # name, rw, block size, depth
    ("randread-4k-qd1", "randread", "4k", 1),
    ("randwrite-4k-qd1", "randwrite", "4k", 1),
    ("randread-4k-qd32", "randread", "4k", 32),
    ("randwrite-4k-qd32", "randwrite", "4k", 32),
    ("read-128k-qd8", "read", "128k", 8),
    ("write-128k-qd8", "write", "128k", 8),
]


def medians(samples):
    """One sample of the medians of all `samples`, metric by metric."""
    return {metric: statistics.median(sample[metric] for sample in samples) for metric in samples[0]}
