"""What a proxy can be asked, and what it answers. The server imports this and nothing else of the
proxy; `docs/reference/messages.md` describes it for people.

Every message is a frozen dataclass with a `schema_version`; on the wire it is JSON inside a signed
envelope (`codec`). No message holds a secret in the clear: what is secret is fetched with the task's
lease and comes sealed to the proxy's key (`TaskSecrets`).
"""
