"""Storage systems: arrays and file servers that make snapshots of the volumes below datastores.

A **volume** is what the system can make a snapshot of: a LUN, or a directory tree that it exports by NFS. A
**storage snapshot** is one name on one or several volumes. An **exposure** is what one proxy is shown of it for
one task: the snapshot's own directory of the same export, or a clone of each LUN, connected to that proxy's host.

Drivers make no decision: which snapshot is made, kept or removed is the backup server's business. They touch
only what bears a name that they are given. `base` has the contract, `transports.testing.storage_systems` its suite.
"""
