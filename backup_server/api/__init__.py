"""The REST API, `/api/v1`: a thin door over `backup_server.services`.

Words: the **envelope** is the one shape of every error, whatever went wrong; the **token** is the
bearer's authority for everything that is not a proxy's own call.

Promises: bodies with unknown fields are refused; every route stands in `docs/reference/api.md` and in
`/api/v1/openapi.json`. Answers are what the services give; `schemas` describes them.
"""
