"""A simulated vSphere site: a vCenter, its ESXi hosts and guests with real disks.

The words of this package:

site        one simulated vCenter (`labvc`, a child process) with its work directory
image       a raw file that holds what a guest has on a disk: partition table, file systems, files
volume      a run of bytes inside an image that holds one file system (partition, logical volume
            or the whole disk); see `volumes`
live file   the file behind a VM's disk that its guest writes now; snapshots have frozen files of
            their own
day         what guests do to their file systems between two backups; see `day`
evidence    what is known of a disk at one moment (digest, files); restored disks are compared with
            it; see `verify`

The product does not know this package. This package knows the product by its command line only.
"""

__all__ = ["__version__"]

__version__ = "0.5.1"
