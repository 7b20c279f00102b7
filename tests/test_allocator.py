"""Freed memory stays with the process."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import torch
from causal_dfq.allocator import keep_freed_memory

def page_faults_of_a_tensor():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(64 * 2**20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

# A small allocation in between may take a part of the freed block: the fewest of several count.
before = min(page_faults_of_a_tensor() for _ in range(4))
assert keep_freed_memory()
print(before, min(page_faults_of_a_tensor() for _ in range(4)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_a_freed_block_is_used_again_without_new_pages() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before > 10
    assert after < before / 10


RESIDENT = """
import torch
from causal_dfq.allocator import give_back_freed_memory, keep_freed_memory

def resident_pages():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1])

assert keep_freed_memory()
# The small block after the large one keeps it from being the end of the heap.
large, small = torch.ones(64 * 2**20, dtype=torch.uint8), torch.ones(2**16, dtype=torch.uint8)
held = resident_pages()
del large
kept = resident_pages()
assert give_back_freed_memory()
print(held, kept, resident_pages())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_kept_memory_can_be_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", RESIDENT], capture_output=True, text=True, check=True)
    held, kept, after = map(int, done.stdout.split())
    assert kept > 0.95 * held
    assert after < kept - 48 * 256
