"""Rules as compiled kernels: one text of C++ per rule and dtype, for every model.

trace: a rule to a graph of what a step computes. source, runtime.h: the graph to C++, with
expressions: one operation of it, and stack, stack.h: that of small matrices. build: C++ to a
library, cached on disk. kernel: how it is called. table: the parameters it is called with, and
around: those with a core that no kernel can be made of. watch: whether these are where they were.
plan: who of a group goes into a table. policy: what the ``engine`` argument means. inductor: the
same on a GPU, where torch.compile writes the kernel.
"""
