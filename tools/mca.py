#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The inner loops of an AArch64 kernel set on paper: llvm-mca's cycles beside the cores' limits.

Finds every innermost loop of a shared library (built with -g) in its machine code, says which kernel
it belongs to, which of its loads and stores move tensor data, and has llvm-mca run it on five cores.

One line per loop. Where a loop has branches: two, for its ways with the most and the least tensor data.
  rd, wr, oth          bytes per turn: tensor data loaded (what is loaded as floats and once more as
                       doubles counts once), tensor data stored, and what else goes through SIMD
                       registers (parameters, sums)
  A53 and so on         llvm-mca's cycles per 16 bytes of tensor data, read or written (where a loop touches
                       none: of the parameters and sums)
  ld/st                the least that the core's load and store units allow
  limit                the least for loads, stores and SIMD arithmetic together, in the units that they
                       need and at the width at which the core issues: m = load and store units bind,
                       v = SIMD units (stores need them, too, on some cores), i = issue width
  ratio                cycles / limit. What exceeds 1 comes from integer instructions, and from latency:
                       each turn is taken to follow another of the same loop, so that a sum carried
                       from turn to turn counts in full, though an out-of-order core overlaps short
                       loops. The summary says what ratio would be left without latency
  remarks              rest = takes what another loop of the same function leaves, call = calls a
                       function (neither is part of the summary), SPILLS = loads and stores on the stack
                       that the sources do not have, SCALAR = moves single elements
Limits, like cycles, come from LLVM's models of the cores. Data are in L1; alignment, store
forwarding, caches and mispredicted branches are not part of the models. The model of the A55 takes 6
cycles for an ldp of two vectors and 1 for an ldr of one, where the core loads 64 bits a cycle.
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

Core = collections.namedtuple("Core", "name cpu units out_of_order")

# units: how the names of a model's resources begin if the model is the core's own.
CORES = (
    Core("A53", "cortex-a53", "A53", False),
    Core("A55", "cortex-a55", "CortexA55", False),
    Core("A76", "cortex-a76", "CortexA76", True),
    Core("N1", "neoverse-n1", "N1", True),
    Core("V1", "neoverse-v1", "V1", True),
)
TOLERANCE = 1.10
ITERATIONS = 100
LLVM = 19

# By their names in the sources: what is tensor data, and what is not.
TENSOR = re.compile(r"(x|y|dy|dx|extra|residual|dresidual|strip)\w*")
OTHER = re.compile(
    r"\w*(center|scale|shift|invstd|slope|offset|pivot|mean|pattern|param|coef)\w*"
    r"|sums?(_\w+)?|\w*m2|lanes?|s|s2|g|gx"
)


def run(command, text=None):
    result = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{result.stderr.strip()[:2000]}")
    return result.stdout


# --------------------------------------------------------------------------------------------------
# Debug information: which calls were inlined where


class Scope:
    """A function or an inlined call; outer is where it was inlined."""

    def __init__(self, offset, outer):
        self.offset, self.outer = offset, outer
        self.function = offset  # offset of what was inlined
        self.name, self.file, self.line, self.column = "", None, 0, 0
        self.ranges = []

    def chain(self):
        scope = self
        while scope:
            yield scope
            scope = scope.outer


class DebugInfo:
    """Read from what llvm-dwarfdump prints."""

    ENTRY = re.compile(r"^0x([0-9a-f]+):(\s+)(?:DW_TAG_(\w+)|NULL)")
    ATTRIBUTE = re.compile(r"^\s+DW_AT_(\w+)\t\((.*?)\)?$")
    RANGE = re.compile(r"\[0x([0-9a-f]+), 0x([0-9a-f]+)\)")
    REFERENCE = re.compile(r'^0x([0-9a-f]+)(?: "(.*)")?')
    LINE = re.compile(r"^0x([0-9a-f]+)\s+(\d+)\s+(\d+)\s+(\d+) ")

    def __init__(self, tool, path):
        self.parameters = collections.defaultdict(list)  # offset of a function -> names
        self.scopes = []
        self.read_scopes(run([tool, "--debug-info", path]))
        self.read_lines(run([tool, "--debug-line", path]))
        self.innermost = {}  # address -> scope; outer scopes come before those within
        for scope in self.scopes:
            for low, high in scope.ranges:
                for address in range(low, high, 4):
                    self.innermost[address] = scope

    def read_scopes(self, text):
        stack = []  # (indent, scope) of the entries that the current one lies in
        tag = scope = attribute = None
        for line in text.splitlines():
            if match := self.ENTRY.match(line):
                tag, indent = match[3], len(match[2])
                while stack and stack[-1][0] >= indent:
                    stack.pop()
                scope = stack[-1][1] if stack else None
                if tag in ("subprogram", "inlined_subroutine"):
                    scope = Scope(int(match[1], 16), scope)
                    self.scopes.append(scope)
                stack.append((indent, scope))
            elif match := self.ATTRIBUTE.match(line):
                attribute = match[1]
                if tag == "formal_parameter" and attribute == "name" and scope:
                    self.parameters[scope.offset].append(match[2].strip('"'))
                elif tag in ("subprogram", "inlined_subroutine"):
                    self.read_attribute(scope, attribute, match[2])
            elif attribute == "ranges" and tag in ("subprogram", "inlined_subroutine"):
                scope.ranges += [(int(a, 16), int(b, 16)) for a, b in self.RANGE.findall(line)]

    def read_attribute(self, scope, name, value):
        reference = self.REFERENCE.match(value)
        if name == "name":
            scope.name = value.strip('"')
        elif name == "abstract_origin" and reference:
            scope.function, scope.name = int(reference[1], 16), reference[2] or ""
        elif name == "low_pc" and reference:
            scope.ranges.append((int(reference[1], 16),) * 2)
        elif name == "high_pc" and reference and scope.ranges:
            scope.ranges[-1] = (scope.ranges[-1][0], int(reference[1], 16))
        elif name == "call_file":
            scope.file = value.strip('"')
        elif name in ("call_line", "call_column"):
            setattr(scope, name[5:], int(value, 0))

    def read_lines(self, text):
        directories, files, index, rows = {}, {}, None, []
        for line in text.splitlines():
            if match := self.LINE.match(line):
                rows.append((int(match[1], 16), files.get(int(match[4])), int(match[2]), int(match[3])))
            elif line.startswith("debug_line["):
                directories, files = {}, {}
            elif match := re.match(r'^include_directories\[\s*(\d+)\] = "(.*)"', line):
                directories[int(match[1])] = match[2]
            elif match := re.match(r"^file_names\[\s*(\d+)\]:", line):
                index = int(match[1])
            elif match := re.match(r'^\s+name: "(.*)"', line):
                files[index] = match[1]
            elif match := re.match(r"^\s+dir_index: (\d+)", line):
                files[index] = os.path.join(
                    directories.get(0, ""), directories.get(int(match[1]), ""), files[index]
                )
        rows.sort(key=lambda row: row[0])
        self.rows, self.row_addresses = rows, [row[0] for row in rows]

    def chain(self, address):
        """The calls around an instruction, innermost first."""
        scope = self.innermost.get(address)
        return list(scope.chain()) if scope else []

    def place(self, address):
        """(file, line, column) of an instruction."""
        at = bisect.bisect_right(self.row_addresses, address) - 1
        return self.rows[at][1:] if at >= 0 else (None, 0, 0)


# --------------------------------------------------------------------------------------------------
# Sources


@functools.lru_cache(maxsize=None)
def source(path):
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().split("\n")
    except (OSError, TypeError, UnicodeDecodeError):
        return []


def source_at(path, line, column, lines=6):
    """The source from a place on."""
    text = source(path)[line - 1 : line - 1 + lines] if line > 0 else []
    return "\n".join([text[0][max(column - 1, 0) :]] + text[1:]) if text else ""


def call_arguments(scope):
    """The arguments of an inlined call; None where a macro stands there instead."""
    text = source_at(scope.file, scope.line, scope.column)
    # The place may be that of a call around this one.
    match = re.search(rf"\b{re.escape(scope.name)}\s*\(", text.split(";")[0])
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


def base_name(expression):
    """What a pointer expression starts from: x of x + i, a->x + r*a->x_stride, (x) + j, &x[i] and
    wanted ? x + i : NULL."""
    expression = expression.split("?")[-1]
    match = re.match(r"[\s(&*]*(?:const\s+\w+\s*\*\s*\)\s*\(?)?(\w+(?:\s*(?:->|\.)\s*\w+)*)", expression)
    return re.split(r"->|\.", match[1])[-1].strip() if match else ""


# --------------------------------------------------------------------------------------------------
# Machine code

Instruction = collections.namedtuple("Instruction", "address mnemonic operands target")


class Memory(collections.namedtuple("Memory", "store bytes element base")):
    """What a load or store moves: bytes in all, bytes of each register or lane (0: integer registers)."""

    WIDTH = {"q": 16, "d": 8, "s": 4, "h": 2, "b": 1, "x": 8, "w": 4}

    @classmethod
    def of(cls, instruction):
        kind = re.match(r"(ld|st)([a-z]*\d?)(\w*)", instruction.mnemonic)
        operands = instruction.operands
        address = re.search(r"\[([a-z]\w*)", operands)
        if not kind or not address:
            return None
        store = kind[1] == "st"
        registers = re.match(r"\{\s*([^}]*?)\s*\}(\[\d+\])?", operands)
        if registers:
            names = registers[1].split(",")
            shape = re.search(r"\.(\d*)([bhsd])", names[0])
            width = cls.WIDTH[shape[2]]
            if registers[2] or kind[3] == "r" or kind[2].endswith("r"):  # one lane, or one for all
                return cls(store, len(names) * width, width, address[1])
            whole = int(shape[1]) * width
            return cls(store, len(names) * whole, whole, address[1])
        width = cls.WIDTH.get(operands[0], 0)
        count = 2 if kind[2].startswith(("p", "np")) else 1
        return cls(store, count * width, width if operands[0] in "qdshb" else 0, address[1])


def is_simd(instruction):
    return bool(re.match(r"[vqdshb]\d", instruction.operands))


def disassemble(tool, path):
    """(name, instructions) of each function; names of static functions may occur more than once."""
    functions = []
    for line in run([tool, "-d", "--no-show-raw-insn", path]).splitlines():
        if match := re.match(r"^[0-9a-f]+ <(.*)>:", line):
            functions.append((match[1], []))
        elif functions and (match := re.match(r"^\s*([0-9a-f]+):\s+(\S+)\s*(.*)", line)):
            operands = match[3].split("//")[0].strip()
            target = re.search(r"0x([0-9a-f]+) <", operands)
            # Where it leads does not matter to llvm-mca, but has to be within the instruction's reach.
            operands = re.sub(r"0x[0-9a-f]+ <.*>", "0", operands)
            functions[-1][1].append(
                Instruction(int(match[1], 16), match[2], operands, target and int(target[1], 16))
            )
    return [(name, code) for name, code in functions if code]


JUMP = re.compile(r"^(b|br|ret|b\.\w+|cbn?z|tbn?z)$")


def basic_blocks(code):
    """Basic blocks as lists of instructions, and the numbers of the successors of each."""
    starts = {code[0].address}
    for this, following in zip(code, code[1:]):
        if JUMP.match(this.mnemonic):
            starts |= {following.address, this.target}
    starts.add(code[-1].target)
    blocks, numbers = [], {}
    for instruction in code:
        if instruction.address in starts:
            numbers[instruction.address] = len(blocks)
            blocks.append([])
        blocks[-1].append(instruction)
    successors = []
    for at, block in enumerate(blocks):
        last, to = block[-1], []
        if JUMP.match(last.mnemonic) and last.target in numbers:
            to.append(numbers[last.target])
        if last.mnemonic not in ("b", "br", "ret") and at + 1 < len(blocks):
            to.append(at + 1)
        successors.append(to)
    return blocks, successors


def components(nodes, edges):
    """Strongly connected components that hold a cycle, after Tarjan, without recursion."""
    index, low, stack, on_stack, found = {}, {}, [], set(), []
    for first in nodes:
        if first in index:
            continue
        work = [(first, iter(edges[first]))]
        index[first] = low[first] = len(index)
        stack.append(first)
        on_stack.add(first)
        while work:
            at, to = work[-1]
            following = next(to, None)
            if following is not None:
                if following not in index:
                    index[following] = low[following] = len(index)
                    stack.append(following)
                    on_stack.add(following)
                    work.append((following, iter(edges[following])))
                elif following in on_stack:
                    low[at] = min(low[at], index[following])
                continue
            work.pop()
            if work:
                low[work[-1][0]] = min(low[work[-1][0]], low[at])
            if low[at] == index[at]:
                component = set()
                while at not in component:
                    component.add(stack.pop())
                on_stack -= component
                if len(component) > 1 or at in edges[at]:
                    found.append(component)
    return found


def innermost_loops(successors):
    """(header, blocks) of each loop without a loop in it. A loop is a component of the graph; within it,
    inner loops are what is still one without the jumps to its header."""
    everything = set(range(len(successors)))
    work, loops = [(everything, dict(enumerate(successors)))], []
    while work:
        nodes, edges = work.pop()
        for component in components(nodes, edges):
            inside = {at: [to for to in edges[at] if to in component] for at in component}
            entered = {
                to for at in everything - component for to in successors[at] if to in component
            }
            header = min(entered or component)
            inner = {at: [to for to in inside[at] if to != header] for at in component}
            if components(component, inner):
                work.append((component, inner))
            else:
                loops.append((header, inside))
    return loops


def way_around(header, edges, weight, choose):
    """The blocks from the header back to it whose weight is chosen (by min or max)."""
    best, work = {}, [(header, False)]
    while work:
        at, ready = work.pop()
        if not ready:
            if at not in best:
                best[at] = None
                work.append((at, True))
                work += [(to, False) for to in edges[at] if to not in best]
            continue
        ways = [((0, 0), ()) if to == header else best[to] for to in edges[at]]
        ways = [way for way in ways if way]
        if ways:
            (moved, count), rest = choose(ways, key=lambda way: way[0])
            own = weight(at)
            best[at] = ((own[0] + moved, own[1] + count), (at,) + rest)
    return best[header][1] if best[header] else ()


# --------------------------------------------------------------------------------------------------
# Loops


class Classifier:
    """What loads and stores move: "tensor", "other" (parameters, sums, arguments) or "stack" (what the
    compiler put aside)."""

    LOAD = re.compile(r"^v(ld\d|ec_load|ec_widen)")
    STORE = re.compile(r"^v(st\d|ec_store|ec_narrow_store)")
    DOUBLES = re.compile(r"^(vld1|vst1)\w*_f64$|^vec_(load|store)_d(_n)?$")

    def __init__(self, debug):
        self.debug = debug

    def kind(self, instruction, memory):
        chain = self.debug.chain(instruction.address)
        written_so = self.STORE if memory.store else self.LOAD
        if memory.base in ("sp", "x29") and not any(written_so.match(s.name) for s in chain[:3]):
            return "stack"
        if memory.element == 0 or any(self.DOUBLES.match(s.name) for s in chain[:3]):
            return "other"
        name = self.pointer(chain)
        if not name:
            name = self.indexed(instruction)
            if memory.element >= 8 and not TENSOR.fullmatch(name):
                return "other"  # a double, or a constant of the compiler's
        return "other" if OTHER.fullmatch(name) else "tensor"

    def pointer(self, chain):
        """The name of what a load or store is given, followed outwards while it is a parameter of a
        function that was inlined; "" where no function stands for the load or store."""
        if not chain or not (self.LOAD.match(chain[0].name) or self.STORE.match(chain[0].name)):
            return ""
        name = None
        for scope, outer in zip(chain, chain[1:]):
            arguments = call_arguments(scope)
            if arguments is None:
                if not (name and (TENSOR.fullmatch(name) or OTHER.fullmatch(name))):
                    statement = source_at(scope.file, scope.line, scope.column).split(";")[0]
                    words = [w for w in re.findall(r"\w+", statement) if OTHER.fullmatch(w)]
                    name = words[0] if words else name or "?"
                break
            names = self.debug.parameters.get(scope.function, [])
            at = names.index(name) if name in names else 0
            if at >= len(arguments):
                break
            name = base_name(arguments[at])
            if name not in self.debug.parameters.get(outer.function, []):
                break
        return name or "?"

    def indexed(self, instruction):
        """The array of a subscript in C, where debug information points to its bracket, to its name or
        to the assignment."""
        path, line, column = self.debug.place(instruction.address)
        text = (source(path)[line - 1 : line] or [""])[0]
        if text[column - 1 : column] == "=":
            return base_name(text[: column - 1])
        match = re.search(r"(\w+)\s*$", text[: column - 1]) if text[column - 1 : column] == "[" else None
        return match[1] if match else base_name(text[max(column - 1, 0) :])


class Loop:
    """One innermost loop: its code, what it moves, what it is called."""

    def __init__(self, function, code, way, classifier):
        self.function, self.code, self.way = function, code, way
        self.written = self.other = self.lanes = self.spills = 0
        wide, narrow = collections.Counter(), collections.Counter()  # tensor -> bytes loaded
        for instruction in code:
            memory = Memory.of(instruction)
            if not memory:
                continue
            kind = classifier.kind(instruction, memory)
            if kind == "stack":
                self.spills += 1
            elif kind == "other":
                self.other += memory.bytes if memory.element else 0
            else:
                self.lanes += memory.element <= 4
                if memory.store:
                    self.written += memory.bytes
                else:
                    name = classifier.pointer(classifier.debug.chain(instruction.address))
                    (wide if memory.element == 16 else narrow)[name] += memory.bytes
        # What is loaded both as floats and, by halves, as doubles is moved once.
        self.read = sum((wide | narrow).values())
        self.moved = self.read + self.written
        self.bytes = self.moved or self.other
        simd = [i.mnemonic for i in code if is_simd(i) and not Memory.of(i)]
        self.operations = " ".join(dict.fromkeys(op for op in simd if op not in ("mov", "dup")))
        self.flags = [
            text
            for text, true in (
                (f"SPILLS {self.spills}", self.spills),
                ("SCALAR", self.lanes),
                (f"branches, {way}", way),
                ("call", any(i.mnemonic == "bl" for i in code)),
            )
            if true
        ]
        self.scope, self.line = self.find_owner(classifier.debug)
        self.owner = self.scope.name if self.scope else function
        self.figures = {}

    def find_owner(self, debug):
        """The innermost inlined function that holds the whole loop, and the line of its last jump."""
        common = None
        for instruction in self.code:
            chain = debug.chain(instruction.address)
            common = [s for s in common if s in chain] if common is not None else chain
        path, line, _ = debug.place(self.code[-1].address)
        return common[0] if common else None, f"{os.path.basename(path or '?')}:{line}"

    def parts(self):
        """For llvm-mca: the loop, its loads and stores, these and its SIMD arithmetic."""
        memory = [i for i in self.code if (m := Memory.of(i)) and m.element]
        both = [i for i in self.code if is_simd(i) or i in memory]
        return self.code, memory, both


def mentioned(code):
    """Where code calls or jumps to, and addresses that it makes, as of functions that it passes on."""
    pages = {}
    for instruction in code:
        if instruction.mnemonic in ("b", "bl", "adr") and instruction.target:
            yield instruction.target
        elif instruction.mnemonic == "adrp" and instruction.target:
            pages[instruction.operands.split(",")[0]] = instruction.target
        elif match := re.match(r"x\d+, (x\d+), #(0x[0-9a-f]+|\d+)$", instruction.operands):
            if instruction.mnemonic == "add" and match[1] in pages:
                yield pages[match[1]] + int(match[2], 0)


def find_loops(path, tools):
    """All loops that move anything through SIMD registers, and function -> those that mention it."""
    debug = DebugInfo(tools["llvm-dwarfdump"], path)
    if not any(source(scope.file) for scope in debug.scopes):
        sys.exit(f"{path}: no debug information, or its sources are gone; build it anew with -g")
    classifier = Classifier(debug)
    functions = [
        (name, code)
        for name, code in disassemble(tools["llvm-objdump"], path)
        if code[0].address in debug.innermost  # not the C runtime's
    ]
    starts = {code[0].address: name for name, code in functions}
    loops, callers = [], collections.defaultdict(set)
    for name, code in functions:
        for target in mentioned(code):
            if target in starts:
                callers[starts[target]].add(name)
        blocks, successors = basic_blocks(code)

        def weight(at, blocks=blocks):
            moved = 0
            for instruction in blocks[at]:
                memory = Memory.of(instruction)
                if memory and memory.element and classifier.kind(instruction, memory) == "tensor":
                    moved += memory.bytes
            return moved, len(blocks[at])

        for header, edges in innermost_loops(successors):
            most = way_around(header, edges, weight, max)
            least = way_around(header, edges, weight, min)
            for way in dict.fromkeys((most, least)):
                which = "" if most == least else "most" if way == most else "least"
                loop = Loop(name, [i for at in way for i in blocks[at]], which, classifier)
                if loop.moved or loop.bytes and way == most:
                    loops.append(loop)
    # Of the loops of one function, inlined once, those that move less per turn take what others leave.
    # A loop with a call is not the innermost one.
    most = collections.Counter()
    for loop in loops:
        key = loop.scope, loop.way == "least"
        most[key] = max(most[key], loop.moved)
    for loop in loops:
        loop.rest = loop.moved < most[loop.scope, loop.way == "least"] or "call" in loop.flags
        if loop.rest and "call" not in loop.flags:
            loop.flags.insert(0, "rest")
    return loops, callers


def kernels_of(function, callers, kernels):
    """The kernels that a function is part of, in their order; its own name where none is known."""
    seen, work = set(), [function]
    while work:
        name = work.pop()
        if name not in seen:
            seen.add(name)
            if name.split(".")[0] not in kernels:
                work += callers.get(name, ())
    names = {name.split(".")[0] for name in seen}
    return [kernel for kernel in kernels if kernel in names] or [function]


# --------------------------------------------------------------------------------------------------
# Figures

Figures = collections.namedtuple("Figures", "cycles memory limit binding ratio miss")


def simulate(tool, cpu, bodies, iterations):
    text = "".join(
        f"# LLVM-MCA-BEGIN {n}\n"
        + ("\n".join(f"{i.mnemonic} {i.operands}" for i in body) or "nop")
        + "\n# LLVM-MCA-END\n"
        for n, body in enumerate(bodies)
    )
    command = [tool, "-mtriple=aarch64-linux-gnu", f"-mcpu={cpu}", "-json", f"-iterations={iterations}"]
    answer = json.loads(run(command, text))
    by_name = {int(region["Name"]): region["SummaryView"] for region in answer["CodeRegions"]}
    return [by_name[n] for n in range(len(bodies))], answer["TargetInfo"]["Resources"]


def measure(loops, tool, core):
    """Fills in the loops' figures for one core; returns the names of its model's units."""
    parts = list(zip(*(loop.parts() for loop in loops)))
    whole, units = simulate(tool, core.cpu, parts[0], ITERATIONS)
    memory, _ = simulate(tool, core.cpu, parts[1], 1)
    both, _ = simulate(tool, core.cpu, parts[2], 1)
    for loop, all_of_it, ports, needed in zip(loops, whole, memory, both):
        unit = 16 / loop.bytes
        cycles = all_of_it["TotalCycles"] / ITERATIONS
        limit, issue = needed["BlockRThroughput"], needed["TotaluOps"] / needed["DispatchWidth"]
        binding = "v"
        if ports["BlockRThroughput"] > 0.98 * limit:
            binding = "m"
        elif issue > 0.98 * limit:
            binding = "i"
        miss = ""
        if cycles > TOLERANCE * limit:
            miss = f"{all_of_it['BlockRThroughput'] / limit:.2f}x without latency"
        loop.figures[core] = Figures(
            cycles * unit, ports["BlockRThroughput"] * unit, limit * unit, binding, cycles / limit, miss
        )
    return units


# --------------------------------------------------------------------------------------------------
# Report


def print_table(title, loops):
    """Loops whose lines would be the same share one."""
    lines = collections.OrderedDict()
    for loop in loops:
        cores = ""
        for core in CORES:
            f = loop.figures[core]
            cores += f" |{f.cycles:6.2f}{f.memory:6.2f}{f.limit:6.2f}{f.binding}{f.ratio:5.2f}"
        text = (
            f"  {loop.owner[:22]:22} {loop.operations[:43]:43}"
            f"{loop.read:5}{loop.written:5}{loop.other:5}{cores} | {', '.join(loop.flags)}"
        )
        key = (tuple(loop.kernels), text.rstrip())
        lines.setdefault(key, []).append(loop)
    print(f"\n{title}")
    heading = "".join(f" |{core.name:>6} ld/st  limit ratio" for core in CORES)
    print(f"  {'loop':22} {'SIMD operations':43}{'rd':>5}{'wr':>5}{'oth':>5}{heading} | remarks")
    kernels = None
    for (these, text), same in lines.items():
        if these != kernels:
            print(" + ".join(these))
            kernels = these
        print(text + (f" ({len(same)} such)" if len(same) > 1 else ""))


def print_summary(loops, units):
    print("\nSummary of the loops over tensor data, those for the rest left out:")
    cores = "".join(f"{core.name + ', worst':>18}" for core in CORES)
    print(f"{f'within {TOLERANCE - 1:.0%} of the limit':48}{cores}")
    for kernels in dict.fromkeys(tuple(loop.kernels) for loop in loops):
        these = [loop for loop in loops if tuple(loop.kernels) == kernels]
        cells = ""
        for core in CORES:
            within = sum(not loop.figures[core].miss for loop in these)
            worst = max(loop.figures[core].ratio for loop in these)
            cells += f"{f'{within} of {len(these)}':>11} {worst:5.2f}x"
        print(f"{' + '.join(kernels):48}{cells}")
    for core in CORES:
        over = sorted(
            (loop for loop in loops if loop.figures[core].miss), key=lambda l: -l.figures[core].ratio
        )
        model = "" if core.out_of_order else ", in order: no target, shows what unrolling would give"
        if not units[core][0].startswith(core.units):
            model += f"; LLVM has no model of it and takes {units[core][0].split('Unit')[0]}'s"
        print(f"\n{core.name}{model}: {len(over)} of {len(loops)} loops over")
        lines = collections.Counter(
            f"{loop.figures[core].ratio:5.2f}x {' + '.join(loop.kernels)}: {loop.owner} ({loop.line};"
            f" {loop.operations}): {loop.figures[core].miss}"
            for loop in over
        )
        for line, count in list(lines.items())[:5]:
            such = f" ({count} such)" if count > 1 else ""
            print(f"  {'MISS' if core.out_of_order else 'over'} {line}{such}")
        if len(lines) > 5:
            print(f"  and {len(over) - sum(list(lines.values())[:5])} more: see the table")
    print()
    for text, chosen in (
        ("SPILLS, loads and stores of registers on the stack", [l for l in loops if l.spills]),
        ("SCALAR, tensor data element by element", [l for l in loops if l.lanes]),
    ):
        print(f"{text}: in {len(chosen)} of {len(loops)} loops")
        places = collections.Counter((" + ".join(l.kernels), l.owner, l.line) for l in chosen)
        for (kernels, owner, line), count in places.most_common():
            print(f"  {count} in {kernels}: {owner} ({line})")


def print_code(loop):
    print(f"\n{'+'.join(loop.kernels)}: {loop.owner} ({loop.line}), {', '.join(loop.flags) or 'no remarks'}")
    for instruction in loop.code:
        print(f"  {instruction.address:8x}  {instruction.mnemonic:8} {instruction.operands}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("library", help="AArch64 shared library that holds the kernel set, with -g")
    parser.add_argument("--isa", default="dispatch/isa.h", help="the header that lists the kernels")
    parser.add_argument("--code", metavar="WORD", help="print the code of loops whose name has WORD in it")
    arguments = parser.parse_args()
    tools = {}
    for name in ("llvm-mca", "llvm-objdump", "llvm-dwarfdump"):
        tools[name] = shutil.which(f"{name}-{LLVM}")
        if not tools[name]:
            sys.exit(f"{name}-{LLVM} is missing: run make deps-mca (figures differ between LLVM's versions)")
    with open(arguments.isa, encoding="utf-8") as file:
        kernels = re.findall(r"\bX\((\w+),", file.read())

    loops, callers = find_loops(arguments.library, tools)
    if not loops:
        sys.exit(f"{arguments.library}: no loops found; was it built with -g, for AArch64?")
    for loop in loops:
        loop.kernels = kernels_of(loop.function, callers, kernels)
    order = {kernel: n for n, kernel in enumerate(kernels)}
    loops.sort(key=lambda loop: [order.get(kernel, len(order)) for kernel in loop.kernels])
    units = {}
    for core in CORES:
        print(f"llvm-mca: {len(loops)} loops on {core.name} ...", file=sys.stderr, flush=True)
        units[core] = measure(loops, tools["llvm-mca"], core)

    if arguments.code:
        for loop in loops:
            if arguments.code in " ".join([*loop.kernels, loop.owner, loop.function]):
                print_code(loop)
        return
    tensor = [loop for loop in loops if loop.moved]
    print(__doc__.split("\n\n", 2)[2].rstrip())
    print_table("Loops over tensor data", tensor)
    print_table("Loops over parameters and sums only", [loop for loop in loops if not loop.moved])
    print_summary([loop for loop in tensor if not loop.rest], units)


if __name__ == "__main__":
    main()
