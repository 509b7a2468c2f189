"""The command line: `vmhaul NOUN VERB`.

Words: a **noun** is a module of this package with one Typer app; a **door** is how a command reaches
the server: the REST API, found through the data directory or `--server`. The CLI knows the API's
shapes and nothing of services or the database, so it drives a remote server as well as a local one.

Promises: `--json` prints the API's own shapes; people get tables; errors go to standard error; the
exit codes are those of `exits.Exit`. Heavy modules (httpx, rich) are imported when they are needed.
"""
