#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The inner loops of an AArch64 kernel set on paper: llvm-mca's cycles beside the ports' limit.

Finds every innermost loop of a shared library in its machine code, says from the debug information
which kernel and which specialisation it belongs to and which of its loads and stores move tensor
data, and has llvm-mca run it on four cores.

Limits come from llvm-mca's models as well: the least time in which a core's units can take the loop's
loads and stores alone (ld/st), its SIMD arithmetic alone (simd), and both through the front end
(issue). Left out of the limits, and so what a miss is made of: integer instructions, branches,
latency, and loads that a better loop would not need (they are counted in the column "other").
All data are in L1; llvm-mca knows neither caches nor unaligned or aliasing accesses.
"""
import argparse
import bisect
import collections
import functools
import json
import os
import re
import shutil
import subprocess
import sys

# Name, -mcpu of llvm-mca, out of order?
CORES = (
    ("A55", "cortex-a55", False),
    ("A76", "cortex-a76", True),
    ("N1", "neoverse-n1", True),
    ("V1", "neoverse-v1", True),
)
TOLERANCE = 1.10  # on out-of-order cores
ITERATIONS = 200

# What is read that is not tensor data, by the names in the sources.
PARAMETER = re.compile(
    r"\b\w*(center|scale|shift|invstd|slope|offset|pivot|mean|pattern|param|coef)\w*\b"
)
SUM = re.compile(r"\b(s|s2|sum\w*|m2|block_m2|lanes?|gx?)\b")


def run(command, text=None):
    result = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"{' '.join(command)}: {result.stderr.strip() or 'failed'}")
    return result.stdout


# --------------------------------------------------------------------------------------------------
# Debug information


class Scope:
    """A function, an inlined call or a block; scopes form a tree."""

    def __init__(self, tag, offset, parent):
        self.tag, self.offset, self.parent = tag, offset, parent
        self.name = self.origin = self.file = None
        self.line = self.column = 0
        self.ranges = []
        self.constants = {}  # of parameters: name -> (value, offset of the parameter's type)
        self.depth = parent.depth + 1 if parent else 0

    def chain(self):
        """Functions from here outwards, blocks left out."""
        scope = self
        while scope:
            if scope.tag != "lexical_block":
                yield scope
            scope = scope.parent


class DebugInfo:
    """What llvm-dwarfdump prints of scopes, parameters, enumerations and lines."""

    ENTRY = re.compile(r"^0x([0-9a-f]+):(\s+)(DW_TAG_(\w+)|NULL)")
    ATTRIBUTE = re.compile(r"^\s+DW_AT_(\w+)\t\((.*?)\)?$")
    RANGE = re.compile(r"\[0x([0-9a-f]+), 0x([0-9a-f]+)\)")
    NAMED = re.compile(r'^0x([0-9a-f]+)(?: "(.*)")?')
    SCOPES = ("subprogram", "inlined_subroutine", "lexical_block")

    def __init__(self, tool, path):
        self.parameters = collections.defaultdict(list)  # abstract function -> its parameters' names
        self.types = {}  # offset of a type or parameter -> type that it refers to
        self.enumerators = collections.defaultdict(dict)  # offset of enumeration -> value -> name
        self.scopes = []
        self.read_info(run([tool, "--debug-info", path]))
        self.read_lines(run([tool, "--debug-line", path]))
        self.pieces = sorted(
            (low, high, scope.depth, scope)
            for scope in self.scopes
            for low, high in scope.ranges
            if low < high
        ) if False else None
        self.by_address = {}
        for scope in sorted(self.scopes, key=lambda s: s.depth):
            for low, high in scope.ranges:
                for address in range(low, high, 4):
                    self.by_address[address] = scope

    def read_info(self, text):
        stack, entry = [], None  # (indent, tag, scope or offset)
        in_ranges = False
        for line in text.splitlines():
            match = self.ENTRY.match(line)
            if match:
                indent, tag = len(match[2]), match[4]
                if tag is None:
                    entry = None
                    continue
                while stack and stack[-1][0] >= indent:
                    stack.pop()
                parent = next((s for _, _, s in reversed(stack) if isinstance(s, Scope)), None)
                offset = int(match[1], 16)
                outer = stack[-1][2] if stack else None
                if tag in self.SCOPES:
                    entry = Scope(tag, offset, parent)
                    self.scopes.append(entry)
                else:
                    entry = {"tag": tag, "offset": offset, "outer": outer}
                stack.append((indent, tag, entry))
                in_ranges = False
                continue
            if entry is None:
                continue
            match = self.ATTRIBUTE.match(line)
            if match:
                in_ranges = match[1] == "ranges"
                self.attribute(entry, match[1], match[2])
            elif in_ranges and isinstance(entry, Scope):
                for low, high in self.RANGE.findall(line):
                    entry.ranges.append((int(low, 16), int(high, 16)))

    def attribute(self, entry, name, value):
        named = self.NAMED.match(value)
        if isinstance(entry, Scope):
            if name == "name":
                entry.name = value.strip('"')
            elif name == "abstract_origin" and named:
                entry.origin, entry.name = int(named[1], 16), named[2]
            elif name == "low_pc" and named:
                entry.ranges.append((int(named[1], 16), int(named[1], 16)))
            elif name == "high_pc" and named and entry.ranges:
                entry.ranges[-1] = (entry.ranges[-1][0], int(named[1], 16))
            elif name == "call_file":
                entry.file = value.strip('"')
            elif name == "call_line":
                entry.line = int(value, 0)
            elif name == "call_column":
                entry.column = int(value, 0)
            return
        tag, outer = entry["tag"], entry["outer"]
        if name == "type" and named:
            self.types[entry["offset"]] = int(named[1], 16)
        if tag == "formal_parameter" and isinstance(outer, Scope):
            if name == "name":
                entry["name"] = value.strip('"')
                self.parameters[outer.offset].append(entry["name"])
            elif name == "abstract_origin" and named:
                entry["name"], entry["origin"] = named[2], int(named[1], 16)
            elif name == "const_value" and "name" in entry and re.match(r"^-?(0x)?[0-9a-f]+$", value):
                outer.constants[entry["name"]] = (int(value, 0), entry.get("origin", entry["offset"]))
        elif tag == "enumerator" and isinstance(outer, dict):
            if name == "name":
                entry["name"] = value.strip('"')
            elif name == "const_value":
                self.enumerators[outer["offset"]][int(value, 0)] = entry["name"]

    def read_lines(self, text):
        names, rows, sequence = {}, [], []
        directories = {}
        index = None
        for line in text.splitlines():
            if line.startswith("debug_line["):
                names, directories = {}, {}
            elif match := re.match(r'^include_directories\[\s*(\d+)\] = "(.*)"', line):
                directories[int(match[1])] = match[2]
            elif match := re.match(r"^file_names\[\s*(\d+)\]:", line):
                index = int(match[1])
            elif match := re.match(r'^\s+name: "(.*)"', line):
                names[index] = match[1]
            elif match := re.match(r"^\s+dir_index: (\d+)", line):
                names[index] = os.path.join(
                    directories.get(0, ""), directories.get(int(match[1]), ""), names[index]
                )
            elif match := re.match(r"^0x([0-9a-f]+)\s+(\d+)\s+(\d+)\s+(\d+)(.*)", line):
                sequence.append(
                    (int(match[1], 16), names.get(int(match[4])), int(match[2]), int(match[3]))
                )
                if "end_sequence" in match[5]:
                    rows += sequence
                    sequence = []
        rows.sort(key=lambda row: row[0])
        self.rows, self.row_addresses = rows, [row[0] for row in rows]

    def scope(self, address):
        return self.by_address.get(address)

    def line(self, address):
        """(file, line, column) of an instruction."""
        at = bisect.bisect_right(self.row_addresses, address) - 1
        return self.rows[at][1:] if at >= 0 else (None, 0, 0)

    def constant(self, value, offset):
        """The enumerator's name, if the parameter's type is an enumeration."""
        while offset in self.types and offset not in self.enumerators:
            offset = self.types[offset]
        return self.enumerators[offset].get(value) if offset in self.enumerators else None


# --------------------------------------------------------------------------------------------------
# Sources


@functools.lru_cache(maxsize=None)
def source(path):
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().split("\n")
    except (OSError, TypeError, UnicodeDecodeError):
        return []


def statement(path, line):
    """The source from a line on to the end of its statement."""
    return " ".join(source(path)[line - 1 : line + 3]).split(";")[0]


def call_arguments(path, line, column, name):
    """The arguments of the call of name at a place, None where it says something else (a macro)."""
    lines = source(path)
    if not 0 < line <= len(lines):
        return None
    text = "\n".join([lines[line - 1][max(column - 1, 0) :]] + lines[line : line + 5])
    match = re.match(rf"{re.escape(name)}\s*\(", text)
    if not match:
        return None
    arguments, depth, start = [], 0, match.end()
    for at in range(match.end(), len(text)):
        if text[at] in "([{":
            depth += 1
        elif text[at] in ")]}":
            if depth == 0:
                return arguments + [text[start:at]]
            depth -= 1
        elif text[at] == "," and depth == 0:
            arguments.append(text[start:at])
            start = at + 1
    return None


# --------------------------------------------------------------------------------------------------
# Machine code

Instruction = collections.namedtuple("Instruction", "address mnemonic operands target")


class Memory(collections.namedtuple("Memory", "store bytes element base")):
    """What a load or store moves: bytes in all, bytes per SIMD element (0: integer registers)."""

    LIST = re.compile(r"\{\s*(.*?)\s*\}(\[\d+\])?")
    WIDTH = {"q": 16, "d": 8, "s": 4, "h": 2, "b": 1, "x": 8, "w": 4}

    @classmethod
    def of(cls, instruction):
        match = re.match(r"(ld|st)(\w*)", instruction.mnemonic)
        if not match or "[" not in instruction.operands:
            return None
        base = re.search(r"\[(\w+)", re.sub(r"\}\[\d+\]", "}", instruction.operands))[1]
        registers = cls.LIST.match(instruction.operands)
        if registers:
            names = registers[1].split(",")
            kind = re.search(r"\.(\d*)([bhsd])", names[0])
            element = cls.WIDTH[kind[2]]
            lanes = 1 if registers[2] or match[2].endswith("r") else int(kind[1])
            return cls(match[1] == "st", len(names) * lanes * element, element, base)
        count = 2 if match[2].startswith(("p", "np")) else 1
        width = cls.WIDTH.get(instruction.operands[0], 0)
        simd = instruction.operands[0] in "qdshb"
        return cls(match[1] == "st", count * width, width if simd else 0, base)


def is_simd(instruction):
    """Arithmetic in SIMD registers; loads and stores are asked for separately."""
    return bool(re.match(r"[vqdshb]\d", instruction.operands))


def disassemble(tool, path):
    """Function name -> instructions."""
    functions = {}
    current = None
    for line in run([tool, "-d", "--no-show-raw-insn", path]).splitlines():
        if match := re.match(r"^[0-9a-f]+ <(.*)>:", line):
            current = functions.setdefault(match[1], [])
        elif current is not None and (match := re.match(r"^\s*([0-9a-f]+):\s+(\S+)\s*(.*)", line)):
            operands = match[3].split("//")[0].strip()
            target = re.search(r"0x([0-9a-f]+) <", operands)
            operands = re.sub(r"\s*<.*>", "", operands)
            current.append(
                Instruction(
                    int(match[1], 16), match[2], operands, target and int(target[1], 16)
                )
            )
    return functions


JUMP = re.compile(r"^(b|br|ret|b\.\w+|cbn?z|tbn?z)$")
ALWAYS = ("b", "br", "ret")


def blocks_of(code):
    """Basic blocks as lists of instructions, and the successors of each by number."""
    inside = {i.address for i in code}
    starts = {code[0].address}
    for this, following in zip(code, code[1:]):
        if JUMP.match(this.mnemonic):
            starts.add(following.address)
    for i in code:
        if JUMP.match(i.mnemonic) and i.target in inside:
            starts.add(i.target)
    blocks, number = [], {}
    for i in code:
        if i.address in starts:
            number[i.address] = len(blocks)
            blocks.append([])
        blocks[-1].append(i)
    successors = []
    for at, block in enumerate(blocks):
        last = block[-1]
        to = []
        if JUMP.match(last.mnemonic) and last.target in number:
            to.append(number[last.target])
        if last.mnemonic not in ALWAYS and at + 1 < len(blocks):
            to.append(at + 1)
        successors.append(to)
    return blocks, successors


def dominators(successors):
    """Immediate dominators, after Cooper, Harvey and Kennedy. Blocks that nothing leads to (the cases
    of a jump table) hang on the root, whose number is len(successors)."""
    root = len(successors)
    predecessors = [[] for _ in range(root)]
    for at, to in enumerate(successors):
        for block in to:
            predecessors[block].append(at)
    entries = [at for at in range(root) if at == 0 or not predecessors[at]]
    for at in entries:
        predecessors[at].append(root)
    order, seen = [], {root}
    stack = [(root, iter(entries))]
    while stack:
        at, to = stack[-1]
        following = next((b for b in to if b not in seen), None)
        if following is None:
            order.append(at)
            stack.pop()
        else:
            seen.add(following)
            stack.append((following, iter(successors[following])))
    rank = {at: i for i, at in enumerate(order)}
    idom = {root: root}
    changed = True
    while changed:
        changed = False
        for at in reversed(order[:-1]):
            new = None
            for other in predecessors[at]:
                if other not in idom:
                    continue
                if new is None:
                    new = other
                    continue
                while new != other:
                    while rank[new] < rank[other]:
                        new = idom[new]
                    while rank[other] < rank[new]:
                        other = idom[other]
            if new is not None and idom.get(at) != new:
                idom[at], changed = new, True
    return idom, predecessors


def innermost_loops(successors):
    """(header, set of blocks) of each natural loop that contains no other."""
    idom, predecessors = dominators(successors)
    root = len(successors)

    def dominates(a, b):
        while b != a and b != root:
            b = idom.get(b, root)
        return b == a

    loops = {}
    for at, to in enumerate(successors):
        for header in to:
            if at in idom and dominates(header, at):
                body = loops.setdefault(header, {header})
                work = [at]
                while work:
                    block = work.pop()
                    if block not in body:
                        body.add(block)
                        work += [p for p in predecessors[block] if p != root]
    return [
        (header, body)
        for header, body in loops.items()
        if not any(other in body for other in loops if other != header)
    ]


def heaviest_path(header, body, successors, weight):
    """From the header back to it by the blocks with the largest weight, and whether there are others."""

    @functools.lru_cache(maxsize=None)
    def best(at):
        ways = []
        for to in successors[at]:
            if to == header:
                ways.append((0, 0, ()))
            elif to in body:
                rest = best(to)
                if rest:
                    ways.append(rest)
        if not ways:
            return None
        most = max(ways, key=lambda way: way[:2])
        own = weight(at)
        return own[0] + most[0], own[1] + most[1], (at,) + most[2]

    branches = any(sum(to in body for to in successors[at]) > 1 for at in body)
    way = best(header)
    return way and way[2], branches


# --------------------------------------------------------------------------------------------------
# Loops

LOAD_STORE = re.compile(r"^(v?(ld|st)1\w*|vec_(load|store|widen|narrow_store)\w*)$")


class Classifier:
    """What the loads and stores of a loop move, by the debug information and the sources."""

    def __init__(self, debug):
        self.debug = debug

    def kind(self, instruction, memory):
        """tensor, other (parameters, sums), stack (what was spilled)."""
        scope = self.debug.scope(instruction.address)
        chain = list(scope.chain()) if scope else []
        explicit = any(LOAD_STORE.match(s.name or "") for s in chain[:3])
        if memory.base in ("sp", "x29") and not explicit:
            return "stack"
        if memory.element == 0:
            return "other"
        return self.by_source(instruction, memory, chain)

    def by_source(self, instruction, memory, chain):
        """Follows the pointer from the load or store out through the calls that were inlined."""
        if any(re.match(r"^(vec_\w*_d(_n)?|v\w*_f64)$", s.name or "") and "cvt" not in s.name
               for s in chain[:2]):
            return "other"
        pointer = None
        for depth, scope in enumerate(chain[:-1]):
            arguments = call_arguments(scope.file, scope.line, scope.column, scope.name or "")
            if arguments is None:
                text = statement(scope.file, scope.line)
            elif pointer is None:
                text = arguments[0]
            else:
                names = self.debug.parameters.get(scope.origin, [])
                at = names.index(pointer) if pointer in names else -1
                if not 0 <= at < len(arguments):
                    break
                text = arguments[at]
            if PARAMETER.search(text):
                return "other"
            base = re.match(r"\s*(?:\([^)]*\)\s*)?(\w+)", text)
            outer = chain[depth + 1]
            names = self.debug.parameters.get(outer.origin or outer.offset, [])
            if not base or base[1] not in names:
                return "other" if base and SUM.fullmatch(base[1]) else "tensor"
            pointer = base[1]
        if pointer is None and not chain[:-1] or memory.element == 8:
            path, line, _ = self.debug.line(instruction.address)
            text = statement(path, line)
            if memory.element == 8 or PARAMETER.search(text):
                return "other"
        return "other" if pointer and (PARAMETER.search(pointer) or SUM.fullmatch(pointer)) else "tensor"


class Loop:
    def __init__(self, function, code, branches, classifier):
        self.function, self.branches = function, branches
        self.code = code
        self.read = self.written = self.other = self.elements = 0
        self.flags = []
        self.spills = 0
        for instruction in code:
            memory = Memory.of(instruction)
            if not memory:
                continue
            kind = classifier.kind(instruction, memory)
            if kind == "stack":
                self.spills += 1
            elif kind == "tensor":
                if memory.store:
                    self.written += memory.bytes
                else:
                    self.read += memory.bytes
                self.elements += memory.element if memory.bytes == memory.element and memory.bytes <= 4 else 0
            elif memory.element:
                self.other += memory.bytes
        self.tensor = self.read + self.written > 0
        self.bytes = self.read + self.written or self.other
        self.name(classifier.debug)
        self.results = {}

    def name(self, debug):
        """The innermost inlined function that holds the whole loop, with its constant arguments."""
        common = None
        for instruction in self.code:
            scope = debug.scope(instruction.address)
            chain = list(scope.chain())[::-1] if scope else []
            if common is None:
                common = chain
            else:
                same = 0
                while same < min(len(common), len(chain)) and common[same] is chain[same]:
                    same += 1
                common = common[:same]
        self.owner = common[-1] if common else None
        constants = {}
        for scope in (common or [])[::-1]:
            for name, (value, kind) in scope.constants.items():
                constants.setdefault(name, (value, debug.constant(value, kind)))
        words = []
        for name, (value, enumerator) in constants.items():
            if enumerator:
                words.append(re.sub(r"^BNORM_(ACT_)?", "", enumerator).lower())
            elif value in (0, 1):
                words.append(name if value else "!" + name)
            else:
                words.append(f"{name}={value}")
        self.variant = " ".join(words)
        self.where = self.owner.name if self.owner and self.owner.name else self.function
        self.line = debug.line(self.code[-1].address)

    def texts(self):
        """Assembly for llvm-mca: the loop, its loads and stores, its SIMD arithmetic, both."""
        def text(chosen):
            return "\n".join(f"{i.mnemonic} {i.operands}" for i in chosen) or "nop"

        memory = [i for i in self.code if (m := Memory.of(i)) and m.element]
        simd = [i for i in self.code if is_simd(i) and not Memory.of(i)]
        both = [i for i in self.code if i in memory or i in simd]
        return text(self.code), text(memory), text(simd), text(both)


def find_loops(path, tools):
    debug = DebugInfo(tools["llvm-dwarfdump"], path)
    classifier = Classifier(debug)
    functions = disassemble(tools["llvm-objdump"], path)
    loops, calls = [], collections.defaultdict(set)
    for function, code in functions.items():
        if not code or not debug.scope(code[0].address):
            continue  # the runtime's
        for i in code:
            if i.mnemonic in ("bl", "b") and i.target:
                calls[i.target].add(function)
        blocks, successors = blocks_of(code)

        def weight(at):
            moved = 0
            for i in blocks[at]:
                memory = Memory.of(i)
                if memory and memory.element and classifier.kind(i, memory) == "tensor":
                    moved += memory.bytes
            return moved, len(blocks[at])

        for header, body in innermost_loops(successors):
            way, branches = heaviest_path(header, body, successors, weight)
            if not way:
                continue
            loop = Loop(function, [i for at in way for i in blocks[at]], branches, classifier)
            if loop.bytes:
                loops.append(loop)
    callers = {name: calls[code[0].address] - {name} for name, code in functions.items() if code}
    return loops, callers


def kernels_of(function, callers, kernels):
    """The kernels that a function is part of."""
    seen, work, found = set(), [function], []
    while work:
        name = work.pop()
        plain = name.split(".")[0]
        if plain in kernels:
            found.append(plain)
        elif name not in seen:
            seen.add(name)
            work += callers.get(name, ())
    return sorted(set(found), key=kernels.index)


def measure(loops, tool, cpu):
    """Cycles per iteration and the three limits of each loop on one core."""
    text = "".join(
        f"# LLVM-MCA-BEGIN {n}.{part}\n{body}\n# LLVM-MCA-END\n"
        for n, loop in enumerate(loops)
        for part, body in enumerate(loop.texts())
    )
    command = [tool, "-mtriple=aarch64-linux-gnu", f"-mcpu={cpu}", "-json", f"-iterations={ITERATIONS}"]
    regions = json.loads(run(command, text))
    views = {region["Name"]: region["SummaryView"] for region in regions["CodeRegions"]}
    results = []
    for n in range(len(loops)):
        whole, memory, simd, both = (views[f"{n}.{part}"] for part in range(4))
        issue = both["TotaluOps"] / both["Iterations"] / both["DispatchWidth"]
        results.append({
            "cycles": whole["TotalCycles"] / whole["Iterations"],
            "ld/st": memory["BlockRThroughput"],
            "simd": simd["BlockRThroughput"],
            "issue": issue,
        })
    return results, regions["TargetInfo"]["Resources"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("library")
    parser.add_argument("--dump", action="store_true")
    args = parser.parse_args()
    tools = {n: shutil.which(n + "-19") for n in ("llvm-mca", "llvm-objdump", "llvm-dwarfdump")}
    loops, callers = find_loops(args.library, tools)
    kernels = re.findall(r"\bX\((\w+),", open("dispatch/isa.h", encoding="utf-8").read())
    for core, cpu, _ in CORES:
        results, _ = measure(loops, tools["llvm-mca"], cpu)
        for loop, result in zip(loops, results):
            loop.results[core] = result
    for loop in loops:
        ks = kernels_of(loop.function, callers, kernels)
        cols = []
        for core, _, _ in CORES:
            r = loop.results[core]
            which = max(("ld/st", "simd", "issue"), key=lambda k: r[k])
            u = 16 / loop.bytes
            cols.append(f"{r['cycles']*u:5.2f}/{r['ld/st']*u:5.2f} {r[which]*u:5.2f}{which[0]} {r['cycles']/r[which]:4.2f}")
        print("+".join(ks), loop.where, "|", loop.variant, "| %s:%d" % (os.path.basename(loop.line[0] or ""), loop.line[1]), "|", len(loop.code), f"r{loop.read} w{loop.written} o{loop.other} sp{loop.spills} el{loop.elements} {'br' if loop.branches else ''} |", " | ".join(cols))
        if args.dump:
            for i in loop.code: print("      %x %s %s" % (i.address, i.mnemonic, i.operands))


if __name__ == "__main__":
    main()
