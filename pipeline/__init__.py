"""What happens to the bytes of a disk between a transport mode and a backup repository.

Words: a **block** is a fixed-size piece of a disk on its own grid; a **blob** is anything stored under
the keyed hash of its content; a **pack** is a file of blobs; a **disk map** is the tree that names the
blocks of one disk at one time; a **restore point** is one state of one VM: its configuration and the
map of each of its disks; a **backup chain** is the restore points of one VM in one repository.

The package promises: what `restore` returns is what was read, or an error; nothing else. It knows
`transports.base` and no transport mode, no vSphere, no queue, no database.
"""
