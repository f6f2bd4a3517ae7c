"""Bugs planted in our own kernels, by editing their source, that the emulation has to find."""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import pathlib
import re
import threading
from typing import NamedTuple

import emulated_build
import pytest
from outcomes import REFUSED, RIGHT, SANITIZER, WRONG, check

FOLDER = pathlib.Path(__file__).parent


class Bug(NamedTuple):
    kernel: str
    text: str
    replacement: str
    found: str
    pattern: str = ""
    file: str = ""  # a header that the kernel includes; else the bug is in the .cu file


PLAN, LINEAR, TILE = "dispatch_plan", "grouped_linear", "tile_product.cuh"
GRADIENTS = "policy_gradients"
MEMORY, STEP, NTM = "memory/memory_ops", "memory/dnc_step", "memory/ntm_step"
CELL, NORM = "memory/memory_cell", "memory/norm.cuh"
SEQUENCE = "memory/ntm_sequence"
GROUP, CONTENT, ALLOCATION, LINK = (f"memory/{name}.cuh" for name in ("group", "content", "allocation", "link"))
PHASES_OF_STEP, PHASES_OF_NTM = "memory/dnc_step.cuh", "memory/ntm_step.cuh"
MATRIX, PASS_OF_SEQUENCE = "memory/matrix.cuh", "memory/sequence_pass.cuh"
BARRIER = "  __syncthreads();\n"

BUGS = {
    "plan, none": Bug(PLAN, "", "", RIGHT),
    "plan, no barrier after counters are set to zero": Bug(
        PLAN,
        f"  set_to_zero(warp_counters, kWarps * t.columns);\n{BARRIER}",
        "  set_to_zero(warp_counters, kWarps * t.columns);\n",
        WRONG,
    ),
    "plan, no barrier after a tile's counters are set to zero": Bug(
        PLAN, f"  set_to_zero(counters, t.columns);\n{BARRIER}", "  set_to_zero(counters, t.columns);\n", WRONG
    ),
    "plan, no barrier before counts are read": Bug(
        PLAN, f"kWarp, own_counters);\n{BARRIER}", "kWarp, own_counters);\n", WRONG
    ),
    "plan, no barrier before positions are read": Bug(PLAN, f"{BARRIER}  place(", "  place(", WRONG),
    "plan, no barrier before warp sums are read": Bug(
        PLAN, f"warp_sums[warp] = inclusive;\n{BARRIER}", "warp_sums[warp] = inclusive;\n", WRONG
    ),
    "plan, no barrier before warp sums are written again": Bug(
        PLAN, "  __syncthreads();  // before `warp_sums` is written again\n", "", WRONG
    ),
    "plan, no __syncwarp before positions advance": Bug(
        PLAN, "  __syncwarp();  // all have read before the first of each bucket writes\n", "", WRONG
    ),
    "plan, too little shared memory": Bug(
        PLAN, "arena.reserve<int>(kWarps * columns)", "arena.reserve<int>(kWarps * columns - 4)", REFUSED, "launch gave"
    ),
    "plan, shared write past the end": Bug(
        PLAN, "i < n; i += kThreads) counters[i] = 0;", "i <= n; i += kThreads) counters[i] = 0;", REFUSED, "write outside"
    ),
    "plan, barrier in a branch": Bug(
        PLAN,
        "    const BlockSum sum = block_sum_before(total, warp_sums);\n",
        "    if (column >= t.columns) break;\n    const BlockSum sum = block_sum_before(total, warp_sums);\n",
        REFUSED,
        "not reached by all|barrier reached by",
    ),
    "plan, last row of a part not counted": Bug(PLAN, "i < part.end; i += stride", "i < part.end - 1; i += stride", WRONG),
    "linear, none": Bug(LINEAR, "", "", RIGHT),
    "linear, no barrier after samples are loaded": Bug(
        LINEAR,
        f"load_samples<Shape::kRows>(rows, samples_tile, samples);\n{BARRIER}",
        "load_samples<Shape::kRows>(rows, samples_tile, samples);\n",
        WRONG,
    ),
    "linear, no barrier after the first step is put": Bug(
        LINEAR, f"b.put(load_b, buffer);\n{BARRIER}", "b.put(load_b, buffer);\n", WRONG, file=TILE
    ),
    "linear, no barrier after the next step is put": Bug(
        LINEAR, f"b.put(load_b, buffer);\n    {BARRIER}", "b.put(load_b, buffer);\n", WRONG, file=TILE
    ),
    "linear, one buffer instead of two": Bug(LINEAR, "      buffer = 1 - buffer;\n", "", WRONG, file=TILE),
    "linear, too little shared memory": Bug(
        LINEAR,
        "  arena.reserve<int64_t>(samples);\n",
        "  arena.reserve<int64_t>(samples - 2);\n",
        REFUSED,
        "launch gave",
        file=TILE,
    ),
    "linear, fewer slots than tiles": Bug(
        LINEAR, "rows.batch / Shape::kRows + part.buckets)", "rows.batch / Shape::kRows + part.buckets - 1)", WRONG
    ),
    "linear, splits of the samples overlap": Bug(LINEAR, "split * split_rows, module_end", "split * 64, module_end", WRONG),
    "linear, rows of the weight not checked": Bug(
        LINEAR, "first + i < height && k < width", "k < width", SANITIZER, "AddressSanitizer: heap-buffer-overflow"
    ),
    "linear, packs stored in odd places": Bug(
        LINEAR, "const bool aligned = width %", "const bool aligned = 0 %", SANITIZER, "store to misaligned address"
    ),
    "gradients, none": Bug(GRADIENTS, "", "", RIGHT),
    "gradients, no barrier before the sums of warps are added": Bug(
        GRADIENTS, f"{BARRIER}  T* out = found", "  T* out = found", WRONG
    ),
    "gradients, sums not set to zero": Bug(GRADIENTS, "k += kWarp) own[k] = 0;", "k += 2 * kWarp) own[k] = 0;", WRONG),
    "gradients, lanes without a decision leave": Bug(
        GRADIENTS,
        "    unsigned left = __ballot",
        "    if (column < 0) continue;\n    unsigned left = __ballot",
        REFUSED,
        "not reached",
    ),
    "cell, none": Bug(CELL, "", "", RIGHT),
    "cell, no barrier before the mean": Bug(
        CELL, "  group.sync();\n  const T mean = sum.total(0)", "  const T mean = sum.total(0)", WRONG, file=NORM
    ),
    "cell, sums of squares where the others are still read": Bug(
        CELL, "squares(group, 1, size, partials + partials_size(1, 1),", "squares(group, 1, size, partials,", WRONG, file=NORM
    ),
    "cell, no barrier before the gradient's mean": Bug(
        CELL, "  group.sync();\n  const T mean = sums.total(0, 0)", "  const T mean = sums.total(0, 0)", WRONG, file=NORM
    ),
    "memory, none": Bug(MEMORY, "", "", RIGHT),
    "memory, no barrier between dots and softmax": Bug(
        MEMORY,
        "  look_up(group, look, a.dots, a.norms);\n  group.sync();\n",
        "  look_up(group, look, a.dots, a.norms);\n",
        WRONG,
    ),
    "memory, no barrier before all pairs are compared": Bug(
        MEMORY,
        "s[i] = above_zero(usage[i]); });\n  group.sync();\n",
        "s[i] = above_zero(usage[i]); });\n",
        WRONG,
        file=ALLOCATION,
    ),
    "memory, equal ones not in the order of their index": Bug(
        MEMORY, "return s_j < s_i ||", "return s_j <= s_i ||", WRONG, file=ALLOCATION
    ),
    "memory, columns added up before all warps are there": Bug(
        MEMORY,
        "    in_block.sync();\n    for_each(in_block, static_cast<int>(smaller",
        "    for_each(in_block, static_cast<int>(smaller",
        WRONG,
        file=GROUP,
    ),
    "memory, next tile of columns too early": Bug(
        MEMORY,
        "total[k];\n      }\n    });\n    in_block.sync();\n",
        "total[k];\n      }\n    });\n",
        WRONG,
        file=GROUP,
    ),
    "memory, lanes without a row skip the shuffles": Bug(
        MEMORY,
        "    f(row < rows ? row : rows - 1, lane, row < rows);\n",
        "    if (row < rows) f(row, lane, true);\n",
        REFUSED,
        "not reached by all lanes",
        GROUP,
    ),
    "memory, too little shared memory for partial sums": Bug(
        MEMORY, "return count * larger(rows, kMaxWarps);", "return count * rows;", REFUSED, "write outside", GROUP
    ),
    "step, none": Bug(STEP, "", "", RIGHT),
    "step, no barrier between interface and usage": Bug(
        STEP, "before.read_weights[i]; });\n  group.sync();\n", "before.read_weights[i]; });\n", WRONG, file=PHASES_OF_STEP
    ),
    "step, no barrier before the next write head": Bug(
        STEP,
        "after.usage[i] = more;\n    });\n    group.sync();\n",
        "after.usage[i] = more;\n    });\n",
        WRONG,
        file=PHASES_OF_STEP,
    ),
    "step, no barrier between writing and looking up": Bug(
        STEP, "work.partials);\n  group.sync();\n  look_up(", "work.partials);\n  look_up(", WRONG, file=PHASES_OF_STEP
    ),
    "ntm, none": Bug(NTM, "", "", RIGHT),
    "ntm, no barrier after the interface": Bug(
        NTM,
        "  group.sync();\n  address(group, s, write_heads(s)",
        "  address(group, s, write_heads(s)",
        WRONG,
        file=PHASES_OF_NTM,
    ),
    "ntm, no barrier between products and cosines": Bug(
        NTM, "  group.sync();\n  const Softmax<T> by_content", "  const Softmax<T> by_content", WRONG, file=PHASES_OF_NTM
    ),
    "ntm, no barrier before shifts are taken back": Bug(
        NTM,
        "  group.sync();\n  for_each(group, l.heads, [&](int h) { of.grad_sharpness[h]",
        "  for_each(group, l.heads, [&](int h) { of.grad_sharpness[h]",
        WRONG,
        file="memory/location.cuh",
    ),
    "sequence, none": Bug(SEQUENCE, "", "", RIGHT),
    "sequence, no barrier between cell and interface": Bug(
        SEQUENCE,
        "work.interface, plan.interface);\n  group.sync();\n",
        "work.interface, plan.interface);\n",
        WRONG,
        file=PASS_OF_SEQUENCE,
    ),
    "sequence, no barrier before gradients of the features are added": Bug(
        SEQUENCE,
        "weights.recurrent, work.partials);\n  group.sync();\n",
        "weights.recurrent, work.partials);\n",
        WRONG,
        file=PASS_OF_SEQUENCE,
    ),
    "cluster, sums of blocks added up before all blocks are there": Bug(
        SEQUENCE, "  group.sync();\n  for_each(group, cols,", "  for_each(group, cols,", WRONG, file=GROUP
    ),
    "cluster, no barrier before a block's own sums": Bug(
        SEQUENCE, "    in_block.sync();\n    for_each(in_block, cols,", "    for_each(in_block, cols,", WRONG, file=MATRIX
    ),
    "cluster, an array of each block that they share the work on": Bug(
        SEQUENCE,
        "  for_each(group.in_block(), plan.features,",
        "  for_each(group, plan.features,",
        WRONG,
        file=PASS_OF_SEQUENCE,
    ),
    "cluster, no place for the sums of a block": Bug(
        SEQUENCE, " + (blocks > 1 ? cols : 0));", ");", REFUSED, "not in dynamic shared memory", file=GROUP
    ),
    "cluster, blocks leave while others read": Bug(
        SEQUENCE,
        "    body.column_sums(j, total);\n  });\n  group.sync();\n",
        "    body.column_sums(j, total);\n  });\n",
        REFUSED,
        "has left the kernel",
        file=GROUP,
    ),
    # What the emulation cannot see: it has no memory ordering, and threads do not interrupt each other between two waits.
    "plan, no __syncwarp after positions advance": Bug(
        PLAN, "__popc(same_bucket);\n    __syncwarp();\n", "__popc(same_bucket);\n", RIGHT
    ),
    "plan, counted without atomics": Bug(
        PLAN,
        "atomicAdd(counters + (active && valid ? action : plan.num_modules), 1);",
        "counters[active && valid ? action : plan.num_modules] += 1;",
        RIGHT,
    ),
}


def _sources(bug: Bug) -> dict[str, str]:
    """The .cu file and, if the bug is in a header, those beside it, by their names; with the bug."""
    kernel = emulated_build.KERNELS / f"{bug.kernel}.cu"
    place = emulated_build.KERNELS / bug.file if bug.file else kernel
    files = {path: path.read_text() for path in [kernel, *(place.parent.glob("*.cuh") if bug.file else ())]}
    assert bug.text in files[place], f"the source has no {bug.text!r} any more"
    files[place] = files[place].replace(bug.text, bug.replacement)
    # One type and one size of the module table will do, and compile faster.
    for surplus in (r"\nINSTANTIATE\((double|__half|__nv_bfloat16)\);", r"\n.*return for_each_part_of<.*kLargeTable>.*"):
        files[kernel] = re.sub(surplus, "", files[kernel])
    return {path.name: text for path, text in files.items()}


def _build(bug: Bug) -> pathlib.Path:
    files, stem = _sources(bug), bug.kernel.rpartition("/")[2]
    name = f"{stem}_{hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:12]}"
    folder = emulated_build.BUILD / "planted" / name
    if not folder.exists():
        partial = folder.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        partial.mkdir(parents=True)
        for file, text in files.items():
            (partial / (f"{name}.cu" if file == f"{stem}.cu" else file)).write_text(text)
        partial.rename(folder)
    sources = [folder / f"{name}.cu", FOLDER / f"{stem}_check.cpp"]
    return emulated_build.build_program(name, sources, sanitize=bug.found == SANITIZER)


@pytest.fixture(scope="module")
def programs() -> dict[str, concurrent.futures.Future[pathlib.Path]]:
    """All of them are compiled at once, `jobs` at a time."""
    with concurrent.futures.ThreadPoolExecutor(emulated_build.jobs()) as pool:
        return {name: pool.submit(_build, bug) for name, bug in BUGS.items()}


@pytest.mark.parametrize("name", BUGS)
def test_finds_bug(name: str, programs: dict[str, concurrent.futures.Future[pathlib.Path]]) -> None:
    bug = BUGS[name]
    check(programs[name].result(), [], bug.found, bug.pattern)
