#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""House rules that a machine can check; each finding says the rule and the reason.

Layers (ci/layers.txt), sizes of files and functions, words the data path may not use, tests that
CMake does not know, headers without a guard, files without a licence line, units that systemd may
give up.
"""
import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CEILING = {".cc": 500, ".h": 250, ".c": 500}
CEILING_EXCEPT = {"libibnbd/include/ibnbd/ibnbd.h": 400}
# Words that allocate, lock, log or hide a call, and the files that may not say them.
DATAPATH_BANNED = {
    r"\bLOG_(ERROR|WARN|INFO|DEBUG)\b": "the data path does not log",
    r"\bstd::function\b|\bAnyInvocable\b": "the data path makes no type-erased calls",
    # Placement new, "new (io->internal) T", makes an object where there is memory already.
    r"\bshared_ptr\b|\bmake_unique\b|\bmake_shared\b|\bnew\s+(?:\(\s*std::nothrow\s*\)|[A-Za-z:])":
        "the data path does not allocate",
    r"\bstd::mutex\b|\block_guard\b|\bunique_lock\b": "the data path takes no lock",
    r"\babsl::Status\b|\babsl::StrCat\b|\bstd::string\b": "the data path builds no text",
}
C_HEADERS = {"errno.h", "limits.h", "signal.h", "stddef.h", "stdint.h", "stdio.h", "stdlib.h", "string.h", "time.h"}

findings = []


def finding(path, line, text):
    findings.append(f"{path}:{line}: {text}")


def tracked():
    out = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"],
                         cwd=ROOT, capture_output=True, text=True, check=True)
    return [p for p in out.stdout.splitlines() if os.path.exists(os.path.join(ROOT, p))]


def read_layers():
    rules = []
    with open(os.path.join(ROOT, "ci/layers.txt")) as layers:
        for raw in layers:
            line, _, why = raw.partition("#")
            if ":" not in line:
                continue
            directory, _, allowed = line.partition(":")
            rules.append((directory.strip(), allowed.split(), why.strip()))
    return sorted(rules, key=lambda rule: -len(rule[0]))


def include_allowed(include, system, allowed, own):
    if system:
        first = include.split("/")[0]
        if "." not in first and "/" not in include:
            return True  # <vector>: the standard library.
        if include in C_HEADERS:
            return True
        return any(a.startswith("<") and include.startswith(a[1:]) for a in allowed)
    if include.startswith(own + "/") or "/" not in include:
        return True
    if any(a.startswith("<") and include.startswith(a[1:] + "/") for a in allowed):
        return True  # Libraries whose habit is quotes: "absl/...".
    return any(not a.startswith("<") and (include == a or include.startswith(a + "/")) for a in allowed)


def check_layers(path, lines, rules):
    # Tests may use everything; so may what only tests include, which lives beside them.
    if path.endswith(("_test.cc", "_fuzz.cc")) or path.startswith("tests/") or \
            re.search(r"(_fixture|/conformance_\w+)\.h$", path):
        return
    rule = next((r for r in rules if path.startswith(r[0] + "/")), None)
    if rule is None:
        return
    directory, allowed, why = rule
    own = directory.removeprefix("libibnbd/")
    for number, line in enumerate(lines, 1):
        match = re.match(r'\s*#\s*include\s+(<([^>]+)>|"([^"]+)")', line)
        if not match:
            continue
        include, system = (match.group(2), True) if match.group(2) else (match.group(3), False)
        if include.startswith("ibnbd/"):
            system = False
        if not include_allowed(include, system, allowed, own):
            finding(path, number, f"{directory} may not include {include}. {why}")


def check_sizes(path, lines):
    ceiling = CEILING_EXCEPT.get(path, CEILING.get(os.path.splitext(path)[1]))
    if path.endswith("_test.cc"):
        ceiling = 900
    if ceiling and len(lines) > ceiling:
        finding(path, len(lines), f"{len(lines)} lines, the ceiling is {ceiling}: split it by concern")
    if not path.endswith(".cc") or path.endswith("_test.cc"):
        return
    start = None
    for number, line in enumerate(lines, 1):
        if start is None and re.match(r"[A-Za-z_].*[({,]\s*$|[A-Za-z_].*\)\s*(const)?\s*\{$", line) and \
                not re.match(r"(namespace|class|struct|enum|union|using|extern)\b", line):
            start = number
        if start is not None and line.startswith("}"):
            if number - start > 70:
                finding(path, start, f"a function of {number - start} lines, the ceiling is 70")
            start = None
        if start is not None and line.rstrip().endswith(";") and not line.startswith((" ", "\t")):
            start = None


def check_words(path, text):
    if path.endswith("_datapath.cc"):
        for pattern, why in DATAPATH_BANNED.items():
            for match in re.finditer(pattern, re.sub(r"//.*", "", text)):
                finding(path, text[:match.start()].count("\n") + 1, f"'{match.group(0)}': {why}")
    if path.endswith("_test.cc"):
        for pattern in (r"\bsleep_for\b", r"\busleep\(", r"\bsleep\(", r"#define private public"):
            if re.search(pattern, text):
                finding(path, 1, f"'{pattern}': tests wait for events, not for time")


def check_licence(path, lines):
    head = "".join(lines[:3])
    if path.endswith((".cc", ".h", ".c", ".py", ".sh", "CMakeLists.txt", ".cmake")) and \
            "SPDX-License-Identifier" not in head:
        finding(path, 1, "no SPDX-License-Identifier line")
    if path.endswith(".h") and "#pragma once" not in "".join(lines) and "#ifndef IBNBD_" not in "".join(lines):
        finding(path, 1, "no include guard")


def check_unit(path, lines):
    """What is restarted is restarted for ever, after a pause: others wait for it."""
    section, settings = "", {}
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if line.startswith("["):
            section = line.strip("[]")
        elif "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            settings[section, key.strip()] = (value.strip(), number)
    restart, number = settings.get(("Service", "Restart"), ("no", 0))
    if restart == "no":
        return
    if settings.get(("Unit", "StartLimitIntervalSec"), ("",))[0] != "0":
        finding(path, number, "no StartLimitIntervalSec=0 in [Unit]: after five quick failures systemd gives it up")
    pause = re.fullmatch(r"(\d+)(ms|s)?", settings.get(("Service", "RestartSec"), ("100ms",))[0])
    if pause is None or int(pause[1]) * (1 if pause[2] == "ms" else 1000) not in range(500, 5001):
        finding(path, number, "RestartSec is not between 500ms and 5s: it is tried for ever, and waited for")


def names_in_cmake(path):
    """The files that the CMakeLists.txt at `path` names, relative to the root: as they are written, and for
    each value of an enclosing foreach(variable values...)."""
    with open(os.path.join(ROOT, path)) as file:
        text = re.sub(r"#.*", "", file.read())
    for variable, values, body in re.findall(r"foreach\((\w+)\s+([^)]*)\)(.*?)endforeach\(", text, re.S):
        text += "".join(body.replace("${" + variable + "}", value) for value in values.split())
    directory = os.path.dirname(path)
    words = re.findall(r"[\w./-]+", text.replace("${CMAKE_CURRENT_SOURCE_DIR}/", ""))
    return {os.path.normpath(os.path.join(directory, word)) for word in words}


def check_registered(paths):
    known = set()
    for path in paths:
        if path.endswith("CMakeLists.txt"):
            known |= names_in_cmake(path)
    for path in paths:
        name = os.path.basename(path)
        if (name.endswith(("_test.cc", "_fuzz.cc")) or re.match(r"tests/e2e/test-.*\.sh$", path)) and \
                path not in known and path.removesuffix(".sh") not in known and path.removesuffix(".cc") not in known:
            finding(path, 1, "CMake does not know this test, so nobody runs it")


def main():
    rules = read_layers()
    paths = tracked()
    for path in paths:
        if path.endswith(".service"):
            with open(os.path.join(ROOT, path)) as file:
                check_unit(path, file.readlines())
        if not path.endswith((".cc", ".h", ".c", ".py", ".sh", "CMakeLists.txt", ".cmake")):
            continue
        with open(os.path.join(ROOT, path), errors="replace") as file:
            lines = file.readlines()
        check_licence(path, lines)
        if path.endswith((".cc", ".h", ".c")):
            check_layers(path, [line.rstrip("\n") for line in lines], rules)
            check_sizes(path, lines)
            check_words(path, "".join(lines))
    check_registered(paths)
    for text in findings:
        print(text)
    print(f"tidy: {len(paths)} files, {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
