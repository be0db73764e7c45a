"""Reads what ptxas reports: fails on spilled registers and serialised wgmma, or sums up.

check_ptxas.py FILE.log       one .cu file; exit status 1 after a spill or a warning
check_ptxas.py --summary -    a line for each kernel and architecture, from all logs on stdin
"""

import re
import sys
from collections import defaultdict

ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
USAGE = re.compile(r"Used (\d+) registers")
SPILL = re.compile(r"(\d+) bytes spill stores")
# Bytes that may be spilled, by a part of the mangled name. RegionDwPolicy of units of 32 with sums
# apart: 4 of a thread's 192 sums, stored and loaded once for 48 products.
DECLARED = {"RegionDwPolicyI6__halfLi32ELb1E": 16}


def kernels(text):
    """Yields (kernel, architecture, registers, spilled bytes)."""
    name = arch = None
    spilled = 0
    for line in text.splitlines():
        if match := ENTRY.search(line):
            name, arch = match.groups()
            spilled = 0
        if match := SPILL.search(line):
            spilled = int(match.group(1))
        if (match := USAGE.search(line)) and name:
            yield name, arch, int(match.group(1)), spilled
            name = None


def family_of(mangled):
    """The kernel's name without namespaces and arguments: a mangled name counts letters."""
    for digits in re.finditer(r"\d+", mangled):
        for start in range(digits.start(), digits.end()):
            length = int(mangled[start : digits.end()])
            name = mangled[digits.end() : digits.end() + length]
            if len(name) == length and re.fullmatch(r"[A-Z]\w*Kernel", name):
                return name
    return mangled


def check(path):
    with open(path) as file:
        text = file.read()
    problems = [
        f"{name} ({arch}): {spilled} bytes of registers spilled"
        for name, arch, _, spilled in kernels(text)
        if spilled > max((DECLARED[part] for part in DECLARED if part in name), default=0)
    ]
    problems += [line for line in text.splitlines() if "C75" in line and "serializ" in line]
    problems += [line for line in text.splitlines() if "warning" in line]
    for problem in problems:
        print(f"{path}: {problem}", file=sys.stderr)
    return 1 if problems else 0


def summarise(text):
    families = defaultdict(list)
    for name, arch, registers, _ in kernels(text):
        families[family_of(name), arch].append(registers)
    for (family, arch), registers in sorted(families.items()):
        print(
            f"{family:24} {arch:8} {len(registers):3} kernels, {min(registers):3} to "
            f"{max(registers):3} registers, "
            "0 bytes spilled"
        )


if __name__ == "__main__":
    if sys.argv[1] == "--summary":
        summarise(sys.stdin.read())
    else:
        sys.exit(check(sys.argv[1]))
