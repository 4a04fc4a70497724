"""Rules in ordinary torch operations: recorded once, repeated in place over pieces of any size.

A pure rule over a large tensor spends its time on memory: each operation makes a temporary, and the
result is copied. recording: what a rule does to a few entries. tape: how its numbers came about.
phases: cut where sums end. rewriting: in fewer operations. program: every value in its place.
repeated: what came of it, kept and run again. calls: the operations.
"""
