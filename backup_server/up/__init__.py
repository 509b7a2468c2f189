"""The supervisor behind `vmhaul up`: one foreground process tree on one machine.

Words: a **child** is a process that the supervisor started and starts again when it ends; **ready**
means that a child does its work, not only that it exists.

Promises: one supervisor for each data directory (`run/up.lock`); children are started in the order
broker, server, local proxies, Flower and stopped in the reverse; they die with the supervisor, however
it ends. The supervisor imports none of what its children do, so it stays small.
"""
