"""What tests of this package and of its users need: the contract suite of storage drivers, storage that
fails on purpose, disks in memory, and a workbench around a small repository.
"""
