"""The stages of the data mover: **read** fills buffers from a disk, **encode** names, compresses and
encrypts blocks on all cores, **store** puts them into packs and builds the disk map, in the disk's order.

Stages are threads joined by bounded queues. A stage that fails stops the others; a reader that stops
early (cancel, lost connection) lets the others finish what was read, so that it counts.
"""
