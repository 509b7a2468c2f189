"""The only package that speaks to vCenter and ESXi (pyVmomi).

Words: a **moref** is vSphere's handle for an object, valid while it stays registered; an **inventory**
is what was there at one moment; a **change id** names a moment in changed block tracking.

The package promises values (`model`), never pyVmomi objects, and errors of `transports.errors`, never
pyVmomi faults. Every method may be repeated; those that change something on vSphere say so first.
"""
