#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Counts a CTest JUnit file: prints "passed failed skipped"; appends names to failures and skips.

usage: junit_counts.py FILE.xml PRESET DIRECTORY
"""
import sys
import xml.etree.ElementTree as ElementTree

path, preset, directory = sys.argv[1:4]
passed = failed = skipped = 0
with open(f"{directory}/skips", "a") as skips, open(f"{directory}/failures", "a") as failures:
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        name = f"{preset}: {case.get('name')}"
        output = "".join(node.text or "" for node in case.iter("system-out"))
        # Tests inside a GoogleTest program that were skipped count too, each with its reason.
        for line in output.splitlines():
            if line.startswith("SKIP "):
                print(f"{name}: {line[5:]}", file=skips)
        if case.get("status") == "run":
            passed += 1
        elif case.find("skipped") is not None or case.get("status") in ("notrun", "disabled"):
            skipped += 1
            if "SKIP " not in output:
                print(f"{name}: gave no reason", file=skips)
        else:
            failed += 1
            print(name, file=failures)
print(passed, failed, skipped)
