"""How a backup proxy reaches the disks of a VM.

Words: a **transport mode** is one way of reading or writing a VM disk from a proxy (direct storage
access, virtual appliance, network, storage snapshot). A **disk reader** is one open disk of a VM
snapshot; a **disk writer** is one open disk of a VM that is being restored. An **extent** is a run of
bytes of one disk.

The package promises bytes: whole buffers or an exception, offsets on the disk's own axis. It promises
nothing about repositories, jobs or queues and knows none of them.
"""
