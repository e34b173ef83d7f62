"""How fast it is, as ratios: every figure is measured beside, and interleaved with, what it is compared to.

Absolute times of a shared machine wander by a factor of two between hours; ratios within one run do not. No test
depends on these figures. `python -m benchmarks --help` names the parts.
"""
