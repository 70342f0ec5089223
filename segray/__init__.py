import os

# PyTorch's allocator then asks for huge pages: without, a fifth of a CPU's time in a model goes into page faults. Read
# once, at the first allocation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.1.0"
