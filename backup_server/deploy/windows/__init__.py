"""A proxy on a Windows machine, over WinRM. Experimental: nothing here ever met a Windows.

Each step is a script in `scripts/`, whose parameters are objects of PowerShell's remoting protocol: nothing is pasted
into a script's text, and no secret is ever on a command line.
"""
