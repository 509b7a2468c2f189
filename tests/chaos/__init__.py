"""Chaos: the whole product, real in every part, while its parts are killed, frozen, cut off and lied to.

A **round** is drawn from a seed and its number: what the stand looks like (database, servers, proxies), what is asked
of it, and which **faults** hit which **parts** at which second. When all faults are healed the round waits for the
product to settle, and a **judge** looks at everything that must hold whatever happened. A round runs in namespaces of
its own (network, processes, mounts), so nothing of it outlives it and several run beside each other.

    python -m tests.chaos --rounds 100 --seed 7         # or: make chaos
    python -m tests.chaos --seed 7 --round 42           # that one again
"""
